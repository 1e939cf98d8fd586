"""``kneo keys``: create and show signing keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kneo import settings
from kneo.cli import render
from kneo.cli.files import read_bytes, write_secret
from kneo.errors import Invalid
from kneo.trust.keys import PEM_BYTES, Algorithm, PrivateKey, PublicKey

app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Private key file to create; must not exist.")],
    *,
    algorithm: Annotated[Algorithm, typer.Option(help="Ed25519, or ECDSA on P-256.")] = Algorithm.ED25519,
    principal: Annotated[str | None, typer.Option(help="Owner of the key, for the output.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a private key and print its public half.

    The key is a PKCS#8 PEM file with mode 0600, encrypted if KNEO_SERV_KEY_PASSPHRASE is set.

    Example: kneo keys generate --output ann.pem --principal ann
    """
    key = PrivateKey.generate(algorithm)
    write_secret(output, key.dump(settings.from_env().key_passphrase or None))
    answer = {"file": str(output), **_described(key.public)}
    if principal:
        answer["principal"] = principal

    def show() -> None:
        render.success(f"Wrote private key {output}. Do not commit it.")
        _print_public(key.public)
        render.text("\nNext: a holder of a root key adds the public half: kneo trust add-key --help")

    render.emit(answer, as_json=as_json, text=show)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Private or public key file (PEM).")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show the id, algorithm and public half of a key.

    Example: kneo keys show ann.pem
    """
    public = load_public(file)
    render.emit(
        {"file": str(file), **_described(public)},
        as_json=as_json,
        text=lambda: _print_public(public),
    )


def load_private(path: Path) -> PrivateKey:
    """Read a private key, with the passphrase of the settings when it has one.

    Raises:
        NotFound, Invalid: no file, no key, or another passphrase; the message names the file.
    """
    return private_from(read_bytes(path, max_bytes=PEM_BYTES, what="private key"), where=str(path))


def private_from(pem: bytes, *, where: str) -> PrivateKey:
    """Read a private key from PEM text.

    Raises:
        Invalid: no key, or another passphrase; the message says ``where``.
    """
    try:
        return PrivateKey.load(pem, settings.from_env().key_passphrase or None)
    except Invalid as error:
        msg = f"{where}: {error.message}"
        raise Invalid(msg, code=error.code, hint=error.hint, file=where) from error


def load_public(path: Path) -> PublicKey:
    """Read a public key, or the public half of a private one.

    Raises:
        NotFound, Invalid: no file or no key; the message names the file.
    """
    data = read_bytes(path, max_bytes=PEM_BYTES, what="key")
    if b"PRIVATE KEY" in data:
        return load_private(path).public
    try:
        return PublicKey.load(data)
    except Invalid as error:
        msg = f"{path}: {error.message}"
        raise Invalid(msg, code=error.code, hint=error.hint, file=str(path)) from error


def _described(public: PublicKey) -> dict[str, str]:
    return {"keyid": public.keyid, "algorithm": public.algorithm.value, "public": public.pem}


def _print_public(public: PublicKey) -> None:
    render.text(f"key id     {public.keyid}\nalgorithm  {public.algorithm}\n\n{public.pem.rstrip()}")
