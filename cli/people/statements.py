"""Answers that are signed on another machine: written down here, signed there, handed in here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.files import write_whole
from cli.people.answer_options import (
    ApproveOption,
    EditOption,
    KeyOption,
    ProvideOption,
    PublicOption,
    ReasonOption,
    RejectOption,
    RequestIdOption,
    SelectOption,
    SignerOption,
    read_answer,
)
from cli.people.answer_signing import fetch_statement, read_statement
from cli.people.human import TaskArgument
from cli.specs.keys import load_public
from cli.specs.signer import signing_key
from kneo.errors import Invalid, Usage
from kneo.trust.answer import AnswerStatement, parse_answer
from kneo.trust.dsse import Envelope, serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE


def statement(
    continuation_id: TaskArgument,
    request_id: RequestIdOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to sign.")],
    approve: ApproveOption = False,
    reject: RejectOption = False,
    edit: EditOption = None,
    provide: ProvideOption = None,
    select: SelectOption = None,
    reason: ReasonOption = None,
    whose: Annotated[
        Path | None,
        typer.Option("--public", help="The key it will be signed with, where no service knows who you are."),
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="How long it can be handed in, up to 24h.")] = "1h",
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write down an answer for signing on another machine. Nothing is answered by that."""
    answer = read_answer(
        request_id, approve=approve, reject=reject, edit=edit, provide=provide, select=select, reason=reason
    )
    keyid = load_public(whose).keyid if whose is not None else None
    with backend(service_url, profile) as asked:
        found = fetch_statement(asked, continuation_id, answer, keyid=keyid, expires_in=expires)
    write_whole(output, serialise(Envelope(PAYLOAD_TYPE, found.payload, ())))
    _show(output, found, "Sign it with kneo human sign", as_json=as_json)


def sign_statement(
    file: Annotated[Path, typer.Argument(help="What kneo human statement wrote.")],
    key: KeyOption = None,
    signer: SignerOption = None,
    public: PublicOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign an answer that was written down, and show what it says. Needs no service."""
    private = signing_key(key, signer, public)
    if private is None:
        msg = "Whose word is it? Give --key, or --signer with --public."
        raise Usage(msg)
    envelope = read_statement(file, may_be_unsigned=True)
    if envelope.payload_type != PAYLOAD_TYPE:
        msg = f"{file} holds {envelope.payload_type}, not an answer."
        raise Invalid(msg, code="Malformed")
    found = parse_answer(envelope.payload, file=str(file))
    write_whole(file, serialise(sign(PAYLOAD_TYPE, found.payload, private)))
    _show(file, found, "Hand it in with kneo human resume --statement", as_json=as_json)


def _show(file: Path, found: AnswerStatement, after: str, *, as_json: bool) -> None:
    said = found.said.model_dump(mode="json", by_alias=True)
    answer: Json = {"file": str(file), "digest": found.digest, "said": said}
    lines = [(name, f"{value}") for name, value in said.items()]

    def text() -> None:
        render.panel(f"Answer of {said['reviewer']}", lines)
        render.text(f"{after} (until {said['expires']}).")

    render.emit(answer, as_json=as_json, text=text)
