"""Decisions as options, and their signatures: the bytes to sign are checked before a key signs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.decisions import DecisionToSign, TaskDecision, get_answer_to_sign, get_human_task
from kneo.api.task_views import HumanTaskView
from kneo.cli import render
from kneo.cli.backend import Backend, Json
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.files import read_bytes, write_whole
from kneo.cli.options import JsonOption, OptionGroup
from kneo.cli.people.tasks import TaskArgument
from kneo.cli.specs.keys import load_public, signing_key
from kneo.digest import digest_of_json
from kneo.errors import Invalid, Untrusted, Usage
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import PAYLOAD_BYTES, AnswerStatement, answer_digest, parse_answer
from kneo.trust.dsse import Envelope, decode_base64, read_envelope, serialise, sign
from kneo.trust.keys import SigningKey
from kneo.trust.receipt import content_digest
from kneo.trust.statement import PAYLOAD_TYPE

FILE_BYTES = 4 * PAYLOAD_BYTES

EDIT_BYTES = 16_777_216
"""Bytes of a file with an edited text; the service has a limit of its own."""

KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Private key that signs the decision. It stays on this machine.")
]


@dataclass(frozen=True)
class DecisionOptions(OptionGroup):
    """The options that make a decision."""

    request_id: Annotated[
        str | None,
        typer.Option("--request-id", help="Id of the question to decide; default: the task's present question."),
    ] = None
    approve: Annotated[bool, typer.Option("--approve", help="Approve. The run continues.")] = False
    reject: Annotated[bool, typer.Option("--reject", help="Reject. The spec decides what happens next.")] = False
    edit: Annotated[str | None, typer.Option("--edit", help="Approve with this text instead of the subject.")] = None
    edit_file: Annotated[Path | None, typer.Option("--edit-file", help="Or with the text of this file.")] = None
    provide: Annotated[str | None, typer.Option("--provide", help="Provide this text.")] = None
    select: Annotated[str | None, typer.Option("--select", help="Select this option.")] = None
    reason: Annotated[str | None, typer.Option("--reason", help="Reason, with --reject.")] = None

    def decision(self) -> TaskDecision:
        """Return the decision.

        Raises:
            Usage: the options make none, or several.
        """
        edited = self._edited()
        options = {
            "approved": self.approve or None,
            "rejected": self.reject or None,
            "edited": edited,
            "provided": self.provide,
            "selected": self.select,
        }
        chosen = [kind for kind, value in options.items() if value is not None]
        if len(chosen) != 1:
            msg = "Pass exactly one of --approve, --reject, --edit, --provide and --select."
            raise Usage(msg)
        content = {"edited": edited, "provided": self.provide, "selected": None}.get(chosen[0], self.reason)
        return request(
            TaskDecision,
            request_id=self.request_id,
            decision=chosen[0],
            content=content,
            selected_option=self.select,
        )

    def _edited(self) -> str | None:
        """Return the text of an edit, every character as it is in its option or file."""
        if self.edit_file is None:
            return self.edit
        if self.edit is not None:
            msg = "Pass --edit or --edit-file, not both."
            raise Usage(msg)
        data = read_bytes(self.edit_file, max_bytes=EDIT_BYTES, what="file with an edited text")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            msg = f"{self.edit_file} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}."
            raise Invalid(msg, hint="Save it as UTF-8.", file=str(self.edit_file)) from error


@dataclass(frozen=True)
class SigningOptions(OptionGroup):
    """The options of a key that signs a decision."""

    key: KeyOption = None
    signer: Annotated[
        str | None, typer.Option("--signer", help="Or a command that signs its standard input; with --public.")
    ] = None
    public: Annotated[Path | None, typer.Option("--public", help="Public key that --signer signs with.")] = None

    def private_key(self) -> SigningKey | None:
        return signing_key(self.key, self.signer, self.public)


def sign_decision(
    opened: Backend,
    task_id: str,
    decision: TaskDecision,
    signing: SigningOptions,
    *,
    statement: Path | None = None,
) -> TaskDecision:
    """Return a decision with its signed statement; the decision itself where there is no signing key.

    Raises:
        Untrusted: ``SubjectMismatch``: the bytes to sign are not this decision.
        KneoError: the decision would be refused.
    """
    if statement is not None:
        return decision.model_copy(update={"statement": _as_json(_read_statement(statement, may_be_unsigned=False))})
    private = signing.private_key()
    if private is None:
        return decision
    unsigned = fetch_statement(opened, task_id, decision, keyid=private.keyid)
    return decision.model_copy(update={"statement": _as_json(sign(PAYLOAD_TYPE, unsigned.payload, private))})


def fetch_statement(
    opened: Backend, task_id: str, decision: TaskDecision, *, keyid: str | None, expires_in: str | None = None
) -> AnswerStatement:
    """Fetch the bytes that sign a decision, and check that they are this decision and nothing else."""
    task = opened.call(get_human_task, task_id)
    fields = decision.model_dump(exclude_unset=True)
    to_sign = request(DecisionToSign, **fields, expires_in=expires_in)
    view = opened.as_signer(keyid).call(get_answer_to_sign, task_id, to_sign)
    statement = parse_answer(decode_base64(view.payload), file="the bytes to sign")
    wrong = next(_differences(statement, task, decision, view.answered), None)
    if wrong is not None:
        msg = f"The bytes to sign are not your decision: {wrong} differs. Nothing was signed."
        raise Untrusted(msg, code="SubjectMismatch", field=wrong, hint="Read the task again.")
    return statement


def _read_statement(path: Path, *, may_be_unsigned: bool) -> Envelope:
    data = read_bytes(path, max_bytes=FILE_BYTES, what="statement")
    return read_envelope(read_json(data, file=str(path)).value, file=str(path), may_be_unsigned=may_be_unsigned)


def _as_json(envelope: Envelope) -> Json:
    fields: Json = json.loads(serialise(envelope))
    return fields


def _differences(
    statement: AnswerStatement, task: HumanTaskView, decision: TaskDecision, content: Json
) -> Iterator[str]:
    """Yield the fields of a statement that differ from the displayed task and from the decision.

    The reviewer and the digest of the rules come from the service; it refuses the decision where they are wrong.
    """
    answer = statement.answer
    displayed = {
        "position": task.position,
        "step": task.step_path,
        "subject": task.current_input,
        "bundle": task.bundle_digest,
    }
    pairs = {
        "task": (answer.task, task.continuation_id),
        "request": (answer.request, decision.request_id or task.pending_human_request_id),
        "run": (answer.run, task.run_id),
        "environment": (answer.environment, task.environment),
        "gate": (answer.gate, task.key),
        "bundleDigest": (answer.bundle_digest, task.bundle_digest),
        "subjectDigest": (answer.subject_digest, digest_of_json(displayed)),
        "decision": (answer.decision, decision.decision),
        "contentDigest": (answer.content_digest, content_digest(content)),
        "answerDigest": (answer.answer_digest, _answer_digest(answer.decision, content)),
    }
    yield from (name for name, (one, other) in pairs.items() if one != other)
    yield from _content_differences(decision, content)


def _answer_digest(decision: str, content: Json) -> str:
    one, several, values = content.get("selectedOption"), content.get("selectedOptions"), content.get("values")
    options = [str(each) for each in several] if isinstance(several, Sequence) else [str(one)] if one else []
    text = content.get("content")
    return answer_digest(
        decision,
        str(text) if text is not None else None,
        options,
        values if isinstance(values, Mapping) else None,
    )


def _content_differences(decision: TaskDecision, content: Json) -> Iterator[str]:
    """Yield the fields of the content to sign that the decision does not have; a form's defaults may be added."""
    values, chosen = content.get("values") or {}, decision.values or {}
    assert isinstance(values, dict)
    if any(values.get(name) != value for name, value in chosen.items()):
        yield "values"
    options = decision.selected_options or ([decision.selected_option] if decision.selected_option else [])
    text = decision.content
    if text is not None and not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    elif text is None and decision.decision == "provided" and values:
        text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    expected = {
        "content": text,
        "selectedOption": options[0] if options else None,
        "selectedOptions": options if len(options) > 1 else None,
        "feedback": decision.feedback,
        "comment": decision.comment,
    }
    yield from (name for name, value in expected.items() if (content.get(name) or None) != (value or None))
    yield from (name for name in content if name not in {*expected, "values"})


@examples(
    "kneo task statement cont_01m0 --approve --output decision.json",
    "kneo task statement cont_01m0 --reject --output decision.json --public ann.pub --expires 4h",
)
def statement(
    task: TaskArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    public: Annotated[
        Path | None, typer.Option("--public", help="Public key of the signer, where no service authenticates you.")
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="Lifetime of the statement, up to 24h.")] = "1h",
    *,
    answer: DecisionOptions,
    options: ServiceOptions,
) -> None:
    """Export a decision for signing on another machine. The task stays open."""
    decision = answer.decision()
    keyid = load_public(public).keyid if public is not None else None
    with options.open() as opened:
        unsigned = fetch_statement(opened, task, decision, keyid=keyid, expires_in=expires)
    write_whole(output, serialise(Envelope(PAYLOAD_TYPE, unsigned.payload, ())))
    _show(output, unsigned, "Sign it with kneo task sign", as_json=options.as_json)


@examples("kneo task sign decision.json --key ann.pem", "kneo task sign decision.json --signer ./hsm --public ann.pub")
def sign_statement(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that kneo task statement wrote.")],
    as_json: JsonOption = False,
    *,
    signing: SigningOptions,
) -> None:
    """Sign an exported decision, and show its content. Needs no service."""
    private = signing.private_key()
    if private is None:
        msg = "No key to sign with. Pass --key, or --signer with --public."
        raise Usage(msg)
    envelope = _read_statement(file, may_be_unsigned=True)
    if envelope.payload_type != PAYLOAD_TYPE:
        msg = f"{file} holds {envelope.payload_type}, not a decision."
        raise Invalid(msg, code="Malformed")
    parsed = parse_answer(envelope.payload, file=str(file))
    write_whole(file, serialise(sign(PAYLOAD_TYPE, parsed.payload, private)))
    _show(file, parsed, "Submit it with kneo task decide --statement", as_json=as_json)


def _show(file: Path, statement: AnswerStatement, next_step: str, *, as_json: bool) -> None:
    answer = statement.answer.model_dump(mode="json", by_alias=True)

    def text() -> None:
        render.panel(f"Decision of {answer['reviewer']}", answer.items())
        render.text(f"{next_step} (until {answer['expires']}).")

    render.emit({"file": str(file), "digest": statement.digest, "said": answer}, as_json=as_json, text=text)
