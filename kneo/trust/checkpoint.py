"""Signed checkpoints of the audit log, in the format of C2SP's ``tlog-checkpoint`` and ``signed-note``.

The text is the origin, the size in decimal and the root in base64, a line each; after an empty line follow signatures as
``— name base64(key hash || signature)``. A checkpoint kept elsewhere proves a later rewrite of the log.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from kneo.errors import Invalid, Untrusted
from kneo.trust.dsse import decode_base64
from kneo.trust.keys import Algorithm, PrivateKey, PublicKey

NOTE_BYTES = 16_384
_BODY = re.compile(r"([^\n]{1,200})\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/=]{44})\n")
_SIGNATURE = re.compile(r"— (\S{1,200}) ([A-Za-z0-9+/=]{8,400})")
_KINDS = {Algorithm.ED25519: 1, Algorithm.P256: 2}


@dataclass(frozen=True)
class SignedCheckpoint:
    """The content of a checkpoint."""

    origin: str
    size: int
    root: str
    """Hex."""


def make_checkpoint(origin: str, size: int, root: str, key: PrivateKey) -> str:
    """Create and sign a checkpoint.

    Args:
        origin: Name of the log: a host or project, without spaces; also the name of the key.
        size: The number of events.
        root: The root over the events, in hex.
        key: The service's key.
    """
    body = f"{origin}\n{size}\n{base64.b64encode(bytes.fromhex(root)).decode()}\n"
    signature = base64.b64encode(_key_hash(origin, key.public) + key.sign(body.encode())).decode()
    return f"{body}\n— {origin} {signature}\n"


def parse_checkpoint(note: str) -> SignedCheckpoint:
    """Parse a checkpoint without verification; see ``read_checkpoint``.

    Raises:
        Invalid: it is not a checkpoint.
    """
    match = _BODY.fullmatch(_body(note)) if len(note) <= NOTE_BYTES else None
    root = decode_base64(match[3]) if match is not None else b""
    if match is None or len(root) != hashlib.sha256().digest_size:
        msg = "This is not a checkpoint: expected an origin, a size and a root, a line each, and signatures."
        raise Invalid(msg, code="Malformed", hint="kneo audit checkpoint prints one.")
    return SignedCheckpoint(match[1], int(match[2]), root.hex())


def read_checkpoint(note: str, *keys: PublicKey) -> SignedCheckpoint:
    """Parse a checkpoint that one of these keys signed.

    Raises:
        Invalid: it is not a checkpoint.
        Untrusted: ``SignatureInvalid``: none of these keys signed it.
    """
    read, body = parse_checkpoint(note), _body(note)
    for line in note.partition("\n\n")[2].splitlines():
        match = _SIGNATURE.fullmatch(line)
        if match is None or match[1] != read.origin:
            continue
        data = decode_base64(match[2])
        for key in keys:
            if data[:4] == _key_hash(match[1], key) and key.verify(body.encode(), data[4:]):
                return read
    msg = f"The checkpoint of {read.size} events was not signed by {'that key' if len(keys) == 1 else 'any of those keys'}."
    raise Untrusted(msg, code="SignatureInvalid")


def _body(note: str) -> str:
    return note.partition("\n\n")[0] + "\n"


def _key_hash(name: str, key: PublicKey) -> bytes:
    """Return the four bytes by which a note names a key, as ``signed-note`` defines them for each kind."""
    der = base64.b64decode("".join(key.pem.splitlines()[1:-1]))
    if key.algorithm is Algorithm.ED25519:
        return hashlib.sha256(name.encode() + b"\n" + bytes([_KINDS[key.algorithm]]) + der[-32:]).digest()[:4]
    return hashlib.sha256(der).digest()[:4]
