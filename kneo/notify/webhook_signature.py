"""Signatures of webhooks that are sent, as Standard Webhooks says (https://www.standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence


def signed_headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """Return the headers by which a receiver checks who sent a body and when.

    Args:
        keys: The secrets; with several, one signature each, so that a receiver can change to another.
        message_id: The id of the message, the same each time it is sent.
        timestamp: When it is sent, in seconds since 1970.
        body: The bytes that are sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
