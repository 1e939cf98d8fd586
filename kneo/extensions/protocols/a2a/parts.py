"""Parts of Agent2Agent's messages and artifacts as JSON values."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.helpers import get_data_parts, get_text_parts
from a2a.types import Part

IN_REPLY_TO = "in_reply_to"
"""The field of a message's metadata with the id of the status message whose question the message answers."""


def data_of(parts: Sequence[Part]) -> list[object]:
    """Return the data of parts, whole numbers as such: the library reads every number as a float."""
    return [_narrowed(value) for value in get_data_parts(parts)]


def value_of(parts: Sequence[Part]) -> object:
    """Return parts as one result: their text, or the only data; several kinds as an object. Files are named, not read."""
    text, data = "\n".join(get_text_parts(parts)), data_of(parts)
    files = [
        part.filename or part.media_type or "file" for part in parts if part.WhichOneof("content") in {"raw", "url"}
    ]
    if not data and not files:
        return text
    if len(data) == 1 and not text and not files:
        return data[0]
    found = {"text": text, "data": data, "files_not_read": files}
    return {name: value for name, value in found.items() if value}


def _narrowed(value: object) -> object:
    if isinstance(value, dict):
        return {name: _narrowed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_narrowed(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
