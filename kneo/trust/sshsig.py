"""SSH signatures (``SSHSIG``, version 1), as ``git commit -S`` makes them: parsed and verified with trusted keys only.

The key in the signature and git's list of allowed signers are ignored: the result is the trusted key that made the
signature. The caller decides about time: a date inside the signed text is set by its author.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kneo.errors import Invalid
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import Algorithm, KeyId

BEGIN, END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
SIGNATURE_BYTES = 8_192
"""Longest accepted signature. Those of supported keys are under 400 bytes."""

NAMESPACE = b"git"
"""The purpose of the signature of a commit; a signature of a file has another one."""

_MAGIC = b"SSHSIG"
_HASHES = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_ALGORITHMS = {b"ssh-ed25519": Algorithm.ED25519, b"ecdsa-sha2-nistp256": Algorithm.P256}


def find_ssh_signer(armored: bytes, message: bytes, keys: Mapping[KeyId, TrustedKey]) -> TrustedKey | None:
    """Return the key among these that signed a message; None when none did.

    Args:
        armored: The signature as it is written.
        message: The signed bytes.
        keys: The trusted keys.

    Raises:
        Invalid: ``Malformed``: not such a signature, or one for another purpose.
    """
    blob = _Reader(_unarmored(armored))
    if blob.take(6) != _MAGIC or blob.number() != 1:
        raise _malformed("it is no SSH signature of version 1")
    blob.string()
    space, reserved, hash_name = blob.string(), blob.string(), blob.string()
    signature = _Reader(blob.string())
    blob.end()
    if space != NAMESPACE:
        raise _malformed(f"it is for {space[:40]!r}, not for {NAMESPACE.decode()}")
    if hash_name not in _HASHES:
        raise _malformed(f"the hash {hash_name[:40]!r} is not one we use")
    digest = _HASHES[hash_name](message).digest()
    signed = _MAGIC + b"".join(_string(part) for part in (space, reserved, hash_name, digest))
    algorithm = _ALGORITHMS.get(kind := signature.string())
    if algorithm is None:
        raise _malformed(f"keys of the kind {kind[:40]!r} are not supported")
    raw = _raw(algorithm, signature.string())
    signature.end()
    return next(
        (key for key in keys.values() if key.public.algorithm is algorithm and key.public.verify(signed, raw)), None
    )


def _raw(algorithm: Algorithm, value: bytes) -> bytes:
    """Convert a signature to the form that ``PublicKey.verify`` takes: SSH encodes the numbers of ECDSA differently."""
    if algorithm is Algorithm.ED25519:
        return value
    numbers = _Reader(value)
    r, s = (int.from_bytes(numbers.string(), "big") for _ in range(2))
    numbers.end()
    return encode_dss_signature(r, s)


def _unarmored(armored: bytes) -> bytes:
    text = armored.strip()
    if len(text) > SIGNATURE_BYTES or not text.startswith(BEGIN) or not text.endswith(END):
        raise _malformed("it is not in armor")
    try:
        return base64.b64decode(b"".join(text[len(BEGIN) : -len(END)].split()), validate=True)
    except binascii.Error as error:
        raise _malformed("its armor holds no base64") from error


class _Reader:
    """A reader of the SSH wire format: a length in four bytes, then as many bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, count: int) -> bytes:
        if count > len(self._data):
            raise _malformed("it is cut short")
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def end(self) -> None:
        if self._data:
            raise _malformed("something follows it")


def _string(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def _malformed(why: str) -> Invalid:
    return Invalid(f"This signature cannot be read: {why}.", code="Malformed")
