"""Signing keys behind a command: in a key service, a hardware token, another machine."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kneo.cli.specs.keys import load_private, load_public
from kneo.errors import Invalid, Transient, Usage
from kneo.trust.dsse import decode_base64
from kneo.trust.keys import Algorithm, KeyId, PublicKey, SigningKey

SECONDS = 60.0
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
            done = subprocess.run(words, input=data, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603 - the operator's own
        except (OSError, ValueError, IndexError) as error:
            msg = f"The signer {self.command[:100]!r} cannot be started: {error}."
            raise Usage(msg) from error
        except subprocess.TimeoutExpired as error:
            msg = f"{self._name} did not sign within {SECONDS:.0f} s."
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
