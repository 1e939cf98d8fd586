"""Texts that another party keeps for this installation, which can neither read nor change them: AES-256-GCM in base64url."""

from __future__ import annotations

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES, TAG_BYTES = 12, 16


class Seal:
    """A key for sealed texts of one purpose.

    Args:
        key: The key, 32 bytes.
        purpose: What the texts are for; one that was sealed for another purpose does not open.
    """

    def __init__(self, key: bytes, purpose: str) -> None:
        self._cipher = AESGCM(key)
        self._purpose = purpose.encode()

    def close(self, text: str) -> str:
        """Return a text, sealed."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, text.encode(), self._purpose)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, sealed: str) -> str | None:
        """Return the text; ``None`` where it was changed, or sealed with another key or for another purpose."""
        try:
            data = base64.b64decode(sealed.encode() + b"=" * (-len(sealed) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(data) < NONCE_BYTES + TAG_BYTES:
            return None
        try:
            return self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], self._purpose).decode()
        except InvalidTag:
            return None
