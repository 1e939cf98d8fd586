"""Values in messages: quoted and shortened, described by kind, and suggestions of known words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

MAX_QUOTED = 80  # characters of a value that a message repeats

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a map"),
)


def quote(value: object) -> str:
    """Quote a value, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def describe(value: object) -> str:
    """Name the kind of a plain value."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "nothing")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word nearest to a word."""
    lower = {name.lower().replace("-", "_"): name for name in reversed(known)}
    found = difflib.get_close_matches(word[:100].lower().replace("-", "_"), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def suggest(word: str, known: Sequence[str]) -> str | None:
    """Suggest the nearest known word, or list the known words."""
    close = nearest(word, known)
    if close is not None:
        return f"Did you mean {close}?"
    return f"Known here: {', '.join(sorted(known)[:30])}." if known else None
