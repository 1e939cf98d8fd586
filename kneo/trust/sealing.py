"""Sealed bodies: AES-256-GCM with keys of the operator, bound to the row that has them.

A sealed body is one byte 0x01, the key's id (4 bytes), the nonce (12 bytes) and the ciphertext. The first key seals, all keys open, so
that a key is replaced by putting another one before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kneo.errors import Invalid, Transient, Untrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES, ID_BYTES, NONCE_BYTES = 32, 4, 12

SEALED = b"\x01"
"""The first byte of a sealed body; no other body begins with it."""

MAX_KEYS = 20

HINT = "Set KNEO_SERV_DATA_KEYS to the key that sealed it, after the present one."


class JournalSealed(Transient):
    """A body was sealed with a key that this process does not have."""

    default_code = "journal_sealed"


class DataKeys:
    """The keys that seal bodies. Without keys nothing is sealed.

    Args:
        keys: Keys of 32 bytes; the first one seals.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._first = next(iter(self._keys), None)

    @classmethod
    def read(cls, text: str) -> DataKeys:
        """Read keys in base64, separated by commas.

        Raises:
            Invalid: ``invalid_setting``: a text is not a key. The message does not repeat it.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        try:
            keys = [base64.b64decode(part, validate=True) for part in parts]
        except (binascii.Error, ValueError):
            keys = [b""]
        if any(len(key) != KEY_BYTES for key in keys) or len(keys) > MAX_KEYS:
            msg = f"KNEO_SERV_DATA_KEYS must be at most {MAX_KEYS} keys of {KEY_BYTES} bytes in base64, separated by commas."
            raise Invalid(msg, code="invalid_setting", hint="Make a key: openssl rand -base64 32")
        return cls(keys)

    def seal(self, body: bytes, place: bytes) -> bytes:
        """Return a body as it is stored at a place; opened at another one it is refused."""
        if self._first is None:
            return body
        nonce = secrets.token_bytes(NONCE_BYTES)
        return SEALED + self._first + nonce + self._ciphers[self._first].encrypt(nonce, body, place)

    def open(self, stored: bytes, place: bytes) -> bytes:
        """Return the body that is stored at a place.

        Raises:
            JournalSealed: its key is not here.
            Untrusted: ``journal_tampered``: it was changed, or sealed for another place.
        """
        if not stored.startswith(SEALED):
            return stored
        start = len(SEALED) + ID_BYTES
        key_id, nonce, sealed = stored[1:start], stored[start : start + NONCE_BYTES], stored[start + NONCE_BYTES :]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            msg = f"A value of the database is sealed with the key {key_id.hex()}, which this process does not have."
            raise JournalSealed(msg, hint=HINT)
        from cryptography.exceptions import InvalidTag

        try:
            return cipher.decrypt(nonce, sealed, place)
        except (InvalidTag, ValueError):
            msg = "A sealed value was changed in the database, or moved to another row."
            raise Untrusted(msg, code="journal_tampered", hint="Restore the row from a backup.") from None

    @cached_property
    def _ciphers(self) -> dict[bytes, AESGCM]:
        if not self._keys:
            return {}
        # Imported when a body is first sealed: most commands need no cryptography.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return {key_id: AESGCM(key) for key_id, key in self._keys.items()}


NO_KEYS = DataKeys()


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"kneo data key\0" + key).digest()[:ID_BYTES]
