"""Options that say an answer, and with which key it is signed. Imports nothing that signs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.backend import Json
from kneo.errors import Usage

RequestIdOption = Annotated[str, typer.Option("--request-id", help="Which question you answer.")]
ApproveOption = Annotated[bool, typer.Option("--approve", help="Let it go on.")]
RejectOption = Annotated[bool, typer.Option("--reject", help="Stop it.")]
EditOption = Annotated[str | None, typer.Option("--edit", help="Go on with this text instead.")]
ProvideOption = Annotated[str | None, typer.Option("--provide", help="Answer with this text.")]
SelectOption = Annotated[str | None, typer.Option("--select", help="Choose one of the options.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why, with --reject.")]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Sign the answer with this private key of yours; it stays here.")
]
SignerOption = Annotated[
    str | None, typer.Option("--signer", help="Or a command that signs its standard input; with --public.")
]
PublicOption = Annotated[Path | None, typer.Option("--public", help="Public key that --signer signs with.")]


def read_answer(
    request_id: str,
    *,
    approve: bool,
    reject: bool,
    edit: str | None,
    provide: str | None,
    select: str | None,
    reason: str | None,
) -> Json:
    """Spell an answer as ``POST …/resume`` takes it.

    Raises:
        Usage: none is given, or several.
    """
    given = {
        "approved": approve or None,
        "rejected": reject or None,
        "edited": edit,
        "provided": provide,
        "selected": select,
    }
    chosen = [decision for decision, value in given.items() if value is not None]
    if len(chosen) != 1:
        msg = "Say exactly one of --approve, --reject, --edit, --provide and --select."
        raise Usage(msg)
    answer: Json = {"request_id": request_id, "decision": chosen[0]}
    if chosen[0] == "selected":
        answer["selected_option"] = select
    elif chosen[0] in {"edited", "provided"}:
        answer["content"] = edit if edit is not None else provide
    elif reason is not None:
        answer["content"] = reason
    return answer
