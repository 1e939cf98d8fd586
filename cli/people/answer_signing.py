"""Signing an answer: looking that the bytes are this answer to this question, before a key touches them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cli.backend import Backend, Json
from cli.files import read_bytes
from kneo.digest import digest_of_json
from kneo.errors import Invalid, Untrusted
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import PAYLOAD_BYTES, AnswerStatement, SignedAnswer, answer_digest, parse_answer
from kneo.trust.dsse import Envelope, decode_base64, read_envelope, serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import SigningKey
from kneo.trust.receipt import content_digest

FILE_BYTES = 4 * PAYLOAD_BYTES


def sign_answer(asked: Backend, task_id: str, answer: Json, key: SigningKey) -> Json:
    """Sign an answer and return the envelope to send with it.

    Raises:
        Untrusted: ``SubjectMismatch``: the bytes that are to be signed say something else.
        KneoError: the answer would be refused.
    """
    statement = fetch_statement(asked, task_id, answer, keyid=key.keyid)
    return as_json(sign(PAYLOAD_TYPE, statement.payload, key))


def fetch_statement(
    asked: Backend, task_id: str, answer: Json, *, keyid: str | None, expires_in: str | None = None
) -> AnswerStatement:
    """Ask for the bytes that sign an answer, and look that they say this answer and nothing else."""
    task = asked.task(task_id)
    order = answer if expires_in is None else {**answer, "expires_in": expires_in}
    told = asked.answer_to_sign(task_id, order, keyid)
    payload, answered = told.get("payload"), told.get("answered")
    if not isinstance(payload, str) or not isinstance(answered, dict):
        msg = "What came back to be signed is no statement."
        raise Invalid(msg, code="Malformed")
    statement = parse_answer(decode_base64(payload), file="what is to be signed")
    wrong = next(_misfits(statement.said, task, answer, answered), None)
    if wrong is not None:
        msg = f"What came back to be signed is not your answer: {wrong} differs. Nothing was signed."
        raise Untrusted(msg, code="SubjectMismatch", field=wrong, hint="Read the task again.")
    return statement


def read_signed(path: Path) -> Json:
    """Read an envelope that was signed elsewhere.

    Raises:
        NotFound, Invalid: it is not there, or none.
    """
    return as_json(read_statement(path, may_be_unsigned=False))


def read_statement(path: Path, *, may_be_unsigned: bool) -> Envelope:
    """Read an envelope from a file, believing none of it."""
    data = read_bytes(path, max_bytes=FILE_BYTES, what="statement")
    return read_envelope(read_json(data, file=str(path)).value, file=str(path), may_be_unsigned=may_be_unsigned)


def as_json(envelope: Envelope) -> Json:
    found: Json = json.loads(serialise(envelope))
    return found


def _misfits(said: SignedAnswer, task: Json, answer: Json, answered: Json) -> Iterator[str]:
    """Name what a statement says other than what was shown and is answered.

    The reviewer and the digest of the rules are the service's word; it refuses the answer where they are wrong.
    """
    shown = {
        "position": task["position"],
        "step": task["step_path"],
        "subject": task["current_input"],
        "bundle": task["bundle_digest"],
    }
    wanted = {
        "task": (said.task, task["continuation_id"]),
        "request": (said.request, answer["request_id"]),
        "run": (said.run, task["run_id"]),
        "environment": (said.environment, task["environment"]),
        "gate": (said.gate, task["key"]),
        "bundleDigest": (said.bundle_digest, task["bundle_digest"]),
        "subjectDigest": (said.subject_digest, digest_of_json(shown)),
        "decision": (said.decision, answer["decision"]),
        "contentDigest": (said.content_digest, content_digest(answered)),
        "answerDigest": (said.answer_digest, _answer_digest(said.decision, answered)),
    }
    yield from (name for name, (one, other) in wanted.items() if one != other)
    yield from _unsaid(answer, answered)


def _answer_digest(decision: str, answered: Json) -> str:
    one, several, values = answered.get("selectedOption"), answered.get("selectedOptions"), answered.get("values")
    options = [str(each) for each in several] if isinstance(several, Sequence) else [str(one)] if one else []
    content = answered.get("content")
    return answer_digest(
        decision,
        str(content) if content is not None else None,
        options,
        values if isinstance(values, Mapping) else None,
    )


def _unsaid(answer: Json, answered: Json) -> Iterator[str]:
    """Name what would be signed and was not said; what a form fills in by itself is said by its defaults."""
    values, given = answered.get("values") or {}, answer.get("values") or {}
    assert isinstance(values, dict)
    assert isinstance(given, dict)
    if any(values.get(name) != value for name, value in given.items()):
        yield "values"
    options = answer.get("selected_options") or ([answer["selected_option"]] if answer.get("selected_option") else [])
    assert isinstance(options, list)
    content = answer.get("content")
    if content is not None and not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    elif content is None and answer["decision"] == "provided" and values:
        content = json.dumps(values, ensure_ascii=False, sort_keys=True)
    meant = {
        "content": content,
        "selectedOption": options[0] if options else None,
        "selectedOptions": options if len(options) > 1 else None,
        "feedback": answer.get("feedback"),
        "comment": answer.get("comment"),
    }
    yield from (name for name, value in meant.items() if (answered.get(name) or None) != (value or None))
    yield from (name for name in answered if name not in {*meant, "values"})
