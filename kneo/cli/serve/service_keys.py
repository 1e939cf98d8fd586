"""``kneo keys api-key`` and ``kneo keys vapid``: keys of callers, and the key of notifications in browsers."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import write_secret
from kneo.cli.options import JsonOption
from kneo.errors import Invalid
from kneo.service.auth import AuthConfig, configured, hash_keys, key_digest
from kneo.settings import from_env
from kneo.trust.web_push import VapidKey


@examples("kneo keys vapid --output vapid.pem")
def vapid(
    output: Annotated[Path, typer.Option("--output", "-o", help="Private key file to create; must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Generate the key of notifications in browsers (Web Push, VAPID).

    The key is a PKCS#8 PEM file with mode 0600. Name it in KNEO_SERV_VAPID_PRIVATE_KEY_FILE of every process, with
    KNEO_SERV_VAPID_SUBJECT. With another key people have to switch notifications on again.
    """
    key = VapidKey.generate()
    write_secret(output, key.pem)

    def show() -> None:
        render.success(f"Wrote private key {output}. Do not commit it.")
        render.text(f"public key  {key.public}")
        render.text(f"\nNext: set KNEO_SERV_VAPID_PRIVATE_KEY_FILE={output} and KNEO_SERV_VAPID_SUBJECT=mailto:ADDRESS")

    render.emit({"file": str(output), "public": key.public}, as_json=as_json, text=show)


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
