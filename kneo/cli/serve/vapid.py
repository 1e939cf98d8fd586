"""``kneo keys vapid``: the key with which a service identifies itself to the push services of browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import JsonOption
from kneo.cli.files import write_secret
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
