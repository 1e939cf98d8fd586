"""``kneo keys``: signing keys in files, and behind commands: in a key service, a hardware token, another machine."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kneo import settings
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import read_bytes, write_secret
from kneo.cli.options import JsonOption
from kneo.errors import Invalid, Transient, Usage
from kneo.trust.dsse import decode_base64
from kneo.trust.keys import PEM_BYTES, Algorithm, KeyId, PrivateKey, PublicKey, SigningKey

app = typer.Typer()


@app.command()
@examples("kneo keys generate --output ann.pem --principal ann")
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Private key file to create; must not exist.")],
    *,
    algorithm: Annotated[Algorithm, typer.Option(help="Ed25519, or ECDSA on P-256.")] = Algorithm.ED25519,
    principal: Annotated[str | None, typer.Option(help="Owner of the key, for the output.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a private key and print its public half.

    The key is a PKCS#8 PEM file with mode 0600, encrypted if KNEO_SERV_KEY_PASSPHRASE is set.
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
        render.text("Processes that sign receipts with it: KNEO_SERV_SERVICE_KEY_FILE.")

    render.emit(answer, as_json=as_json, text=show)


@app.command()
@examples("kneo keys show ann.pem")
def show(
    file: Annotated[Path, typer.Argument(help="Private or public key file (PEM).")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the id, algorithm and public half of a key."""
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


SIGNER_SECONDS = 60.0
"""Time limit of the command."""

SIGNATURE_BYTES = 1_024


@dataclass(frozen=True)
class CommandKey:
    """A key behind a command, which reads the bytes to sign and writes a signature, raw or in base64.

    Args:
        public: The public key of the command.
        command: The command with its arguments, quoted as for a shell; it runs without one.
    """

    public: PublicKey
    command: str

    @property
    def keyid(self) -> KeyId:
        return self.public.keyid

    @property
    def algorithm(self) -> Algorithm:
        return self.public.algorithm

    def sign(self, data: bytes) -> bytes:
        """Sign with the command, and verify its signature.

        Raises:
            Usage: the command cannot be started.
            Transient: it failed or took too long.
            Invalid: its output is no signature by the public key.
        """
        output = self._run(data)
        for signature in (output, _decoded(output)):
            if 0 < len(signature) <= SIGNATURE_BYTES and self.public.verify(data, signature):
                return signature
        msg = f"The output of {self._name} is no signature by {self.keyid}."
        hint = "It gets the bytes on its standard input and writes the signature, raw or in base64; Ed25519, or ECDSA over SHA-256."
        raise Invalid(msg, code="SignatureInvalid", hint=hint)

    def _run(self, data: bytes) -> bytes:
        try:
            words = shlex.split(self.command)
            done = subprocess.run(  # noqa: S603 - the operator's own
                words,
                input=data,
                capture_output=True,
                timeout=SIGNER_SECONDS,
                check=False,
                env=settings.function_environment(),
            )
        except (OSError, ValueError, IndexError) as error:
            msg = f"The signer {self.command[:100]!r} cannot be started: {error}."
            raise Usage(msg) from error
        except subprocess.TimeoutExpired as error:
            msg = f"{self._name} did not sign within {SIGNER_SECONDS:.0f} s."
            raise Transient(msg, code="signer_failed") from error
        if done.returncode != 0:
            why = done.stderr.decode(errors="replace").strip().splitlines()
            msg = f"{self._name} ended with status {done.returncode}: {why[-1][:200] if why else 'no message'}"
            raise Transient(msg, code="signer_failed")
        return done.stdout

    @property
    def _name(self) -> str:
        return shlex.split(self.command)[0]


def signing_key(file: Path | None, signer: str | None, public: Path | None) -> SigningKey | None:
    """Return the signing key of the options; None without one.

    Raises:
        Usage: a part is missing, or there is too much.
        NotFound, Invalid: no file, or no key.
    """
    if (signer is None) != (public is None) or (signer and file):
        msg = "--signer needs --public, and excludes --key."
        raise Usage(msg, hint="Print a public key: kneo keys show FILE")
    if signer is not None and public is not None:
        return CommandKey(load_public(public), signer)
    return load_private(file) if file is not None else None


def _decoded(output: bytes) -> bytes:
    try:
        return decode_base64("".join(output.decode("ascii").split()))
    except (Invalid, UnicodeDecodeError):
        return b""
