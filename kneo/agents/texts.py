"""Texts from models and tools as they are kept: without characters that no database, response or provider takes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

UNSOUND = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of surrogate pairs."""

REPLACEMENT = "\ufffd"


def sound_text(text: str) -> str:
    """Return a text with a replacement for NUL and for each half of a surrogate pair."""
    return UNSOUND.sub(REPLACEMENT, paired(text)) if UNSOUND.search(text) else text


def sound_value(value: T) -> T:
    """Return a JSON value of bounded depth with sound texts, keys included."""
    changed: object = value
    match value:
        case str():
            changed = sound_text(value)
        case Mapping():
            changed = {
                sound_text(key) if isinstance(key, str) else key: sound_value(item) for key, item in value.items()
            }
        case list() | tuple():
            changed = [sound_value(item) for item in value]
    return changed  # type: ignore[return-value]


def paired(text: str) -> str:
    """Return a text with each surrogate pair as the one character that it is: pieces of a stream may end inside a pair."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
