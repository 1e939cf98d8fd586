"""Texts from models and tools as they are kept and shown, and arguments of calls. Pure.

Texts are without characters that no database, response or provider takes. Arguments are JSON objects of bounded depth with a
canonical form: people, gates and services have to read the same value, so arguments that have two readings, or none, are refused
before anything else looks at them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeAlias, TypeVar

from kneo.digest import find_uncanonical

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


def json_value(text: str) -> object:
    """Return the JSON value of a text; a text that is no JSON stays a text."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


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


Arguments: TypeAlias = Mapping[str, object]

MAX_DEPTH = 64
"""Lists and objects inside each other, as in files."""

MAX_REASON_CHARS = 300


def find_flaw(arguments: object) -> str | None:
    """Return why a value cannot be the arguments of a call; ``None`` where it can."""
    if not isinstance(arguments, Mapping):
        return "the arguments are not a JSON object"
    flaw = find_uncanonical(dict(arguments), MAX_DEPTH)
    return (
        f"the arguments are not JSON that every service reads alike: {flaw[:MAX_REASON_CHARS]}"
        if flaw is not None
        else None
    )


def read_arguments(written: str | Arguments | None, limit: int) -> tuple[Arguments, str | None]:
    """Return the arguments of a call of a model, or why they cannot be read.

    Args:
        written: The arguments as the model wrote them, or as its library parsed them.
        limit: Their size in bytes.
    """
    if not written:
        return {}, None
    try:
        text = written if isinstance(written, str) else json.dumps(written)
        if len(text.encode(errors="replace")) > limit:
            return {}, f"the arguments are longer than {limit} bytes"
        arguments = json.loads(text, object_pairs_hook=_unambiguous)
    except (TypeError, ValueError, RecursionError) as error:
        return {}, f"the arguments are not JSON: {str(error)[:MAX_REASON_CHARS]}"
    flaw = find_flaw(arguments)
    return ({}, flaw) if flaw is not None else (arguments, None)


def _unambiguous(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        msg = "a key is written twice"
        raise ValueError(msg)
    return value
