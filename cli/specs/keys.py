"""``kneo keys``: make signing keys, and show whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.files import read_bytes, write_secret
from kneo import settings
from kneo.errors import Invalid
from kneo.trust.keys import PEM_BYTES, Algorithm, PrivateKey, PublicKey

app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The private key's file; it must not exist.")],
    *,
    algorithm: Annotated[Algorithm, typer.Option(help="Ed25519, or ECDSA on P-256.")] = Algorithm.ED25519,
    principal: Annotated[str | None, typer.Option(help="Whose key it is; repeated in the answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a private key.

    A PKCS#8 PEM file that only you can read, encrypted when KNEO_SERV_KEY_PASSPHRASE is set. The public half is printed:
    give it to whoever keeps the trust root.
    """
    key = PrivateKey.generate(algorithm)
    write_secret(output, key.dump(settings.from_env().key_passphrase or None))
    answer = {"file": str(output), **_described(key.public)}
    if principal:
        answer["principal"] = principal

    def show() -> None:
        render.success(f"Private key written to {output}. Keep it out of every repository.")
        _print_public(key.public)
        render.text("\nWhoever keeps the trust root needs the public half: kneo trust add-key --help")

    render.emit(answer, as_json=as_json, text=show)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A private or public key in PEM form.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a key's id, algorithm and public half."""
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
