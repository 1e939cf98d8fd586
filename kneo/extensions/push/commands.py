"""``kneo keys vapid``: the key of notifications in browsers; and the check of ``kneo doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from kneo.cli import render
from kneo.cli.checks import Diagnosis, ok, warning
from kneo.cli.commands import examples
from kneo.cli.files import write_secret
from kneo.cli.options import JsonOption
from kneo.extensions.push.keys import VapidKey
from kneo.service.callers import is_loopback
from kneo.settings import Settings


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


def check_web_push(settings: Settings) -> Diagnosis:
    """Check that the key of notifications in browsers can be used."""
    if not settings.push.private_key:
        return ok("There is no key for notifications in browsers.")
    key = VapidKey.load(settings.push.private_key)
    public = urlsplit(settings.public_url)
    if public.scheme != "https" and not is_loopback(public.hostname or "localhost"):
        hint = "Serve the console over https:// and set KNEO_SERV_PUBLIC_URL."
        return warning("Browsers subscribe only over https://, and KNEO_SERV_PUBLIC_URL is not such an address.", hint)
    return ok(f"Browsers can subscribe to notifications; the public key is {key.public}.")
