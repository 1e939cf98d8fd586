"""``kneo keys api-key``: keys of callers."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.options import JsonOption
from kneo.errors import Invalid
from kneo.service.auth import AuthConfig, configured, hash_keys, key_digest
from kneo.settings import from_env

API_KEY_BYTES = 32

MIN_CHARS = 24
"""Characters of the shortest key whose digest may be printed: a shorter key can be guessed from its digest."""

MAX_CHARS = 1_000


@examples("kneo keys api-key ann --role approver", "kneo keys api-key ci --role runs:read,runs:write --stdin")
def api_key(
    name: Annotated[str, typer.Argument(help="Owner of the key: a person or a program.")],
    role: Annotated[str, typer.Option("--role", help="Role or scopes, separated by commas.")],
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read an existing key from standard input instead of generating one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate an API key, and print its entry for the settings of a service.

    The entry has the digest of the key, not the key: put it into KNEO_SERV_API_KEYS or the file of KNEO_SERV_API_KEYS_FILE, and give
    the key to its owner. Neither is stored.
    """
    key = _existing_key() if stdin else f"kneo_{secrets.token_urlsafe(API_KEY_BYTES)}"
    entry = f"{name}:{key_digest(key)}:{role}"
    check_entry(entry)
    answer = {"name": name, "entry": entry, **({} if stdin else {"key": key})}

    def show() -> None:
        if not stdin:
            render.text(f"key    {key}")
        render.text(f"entry  {entry}")

    render.emit(answer, as_json=as_json, text=show)


def check_entry(entry: str) -> None:
    """Check an entry of ``KNEO_SERV_API_KEYS``.

    Raises:
        Invalid: as the service says.
    """
    if ";" in entry:
        msg = "Entries of API keys are separated by semicolons, so a name or role cannot contain one."
        raise Invalid(msg, code="invalid_setting")
    config = configured(from_env({"KNEO_SERV_API_KEYS": entry}))
    hash_keys(AuthConfig(enabled=True, api_keys=config.api_keys))


def _existing_key() -> str:
    key = sys.stdin.read(MAX_CHARS + 1).rstrip("\r\n")
    if not MIN_CHARS <= len(key) <= MAX_CHARS or key != key.strip() or not key.isprintable():
        msg = f"The key has to be one line of {MIN_CHARS} to {MAX_CHARS} characters."
        raise Invalid(msg, code="weak_key", hint="Leave out --stdin to generate a key.")
    return key
