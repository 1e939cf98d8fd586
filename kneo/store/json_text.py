"""JSON of columns, by pydantic's core with Python's json as the fallback. ADR 22 has the measurements."""

from __future__ import annotations

import json

from pydantic_core import from_json, to_json


def encode(value: object) -> bytes:
    """Encode a JSON value.

    Raises:
        TypeError: a value in it has no JSON form.
    """
    try:
        return to_json(value)
    except ValueError:
        # Half a character: Python writes an escape, which every database stores.
        return json.dumps(value).encode()


def encode_text(value: object) -> str:
    """Encode a JSON value as text."""
    return encode(value).decode()


def decode(text: str | bytes) -> object:
    """Decode a stored JSON value."""
    try:
        value: object = from_json(text)
    except ValueError:
        value = json.loads(text)
    return value
