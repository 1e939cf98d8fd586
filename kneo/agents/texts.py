"""Texts from models and tools as they are kept and shown: without characters that no database, response or provider takes. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
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


def cut_text(text: str, limit: int) -> str:
    """Return a text of at most so many characters, with a note where it is cut."""
    return text if len(text) <= limit else f"{text[:limit]}\n[cut: {len(text)} characters in all]"


def marked_untrusted(text: str, *origin: str, shown: str | None = None) -> str:
    """Return a text from outside between marks; nothing in it ends the mark.

    The mark has a digest of the text, of 128 bits, which the text cannot contain. A shorter one could be searched for.

    Args:
        text: The text.
        origin: The ids of the conversation and of what the text is from.
        shown: The part of the text that is shown; default: all of it.
    """
    mark = f"untrusted-{blake2b(json.dumps([*origin, text]).encode(), digest_size=16).hexdigest()}"
    return f"<{mark}>\n{text if shown is None else shown}\n</{mark}>"
