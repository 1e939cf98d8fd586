"""The difference of two texts as rows of a page: lines, with the words that changed marked. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from markupsafe import Markup, escape

from kneo.names import reveal

MAX_LINES = 2_000
"""Lines that are compared; comparing more would cost too much."""

MAX_LINE_CHARS = 2_000
"""Characters of a line whose words are compared."""

DiffRow = tuple[str, str]
"""The kind of a line, ``" "``, ``"-"`` or ``"+"``, and its text or markup."""

_WORD = re.compile(r"\w+|\W")


def diff_rows(before: str, now: str) -> list[DiffRow] | None:
    """Return the lines of two texts; ``None`` where they have too many lines to compare."""
    old, new = before.splitlines(), now.splitlines()
    if len(old) + len(new) > MAX_LINES:
        return None
    rows: list[DiffRow] = []
    for kind, old_from, old_to, new_from, new_to in _changes(old, new):
        if kind == "equal":
            rows += [(" ", line) for line in old[old_from:old_to]]
        else:
            rows += _changed(old[old_from:old_to], new[new_from:new_to])
    return rows


def _changed(old: list[str], new: list[str]) -> Iterator[DiffRow]:
    pairs = [_mark(first, second) for first, second in zip_longest(old, new)]
    yield from (("-", removed) for removed, _ in pairs if removed is not None)
    yield from (("+", added) for _, added in pairs if added is not None)


def _mark(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Return two lines with the words that differ marked."""
    if old is None or new is None or len(old) + len(new) > MAX_LINE_CHARS:
        return old, new
    before, after = _WORD.findall(old), _WORD.findall(new)
    removed, added = Markup(), Markup()
    for kind, old_from, old_to, new_from, new_to in _changes(before, after):
        gone, come = _text(before[old_from:old_to]), _text(after[new_from:new_to])
        removed += gone if kind == "equal" or not gone else Markup("<del>{}</del>").format(gone)
        added += come if kind == "equal" or not come else Markup("<ins>{}</ins>").format(come)
    return removed, added


def _text(words: list[str]) -> Markup:
    return escape(reveal("".join(words)))


def _changes(before: list[str], after: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
