"""Showing texts that people wrote so that they cannot pretend to be something else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

MAX_LINES = 60  # lines of a changed text that are shown
MAX_WIDTH = 200  # characters of one of them
MAX_COMPARED = 2_000  # lines of a text that are looked at

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&])")


def visible(text: str) -> str:
    """Spell out characters that are not seen or that change how others are read."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def text_lines(before: str, after: str) -> tuple[str, ...]:
    """Return the lines of a text that went and came, with a little around them, shortened."""
    old, new = before.splitlines()[:MAX_COMPARED], after.splitlines()[:MAX_COMPARED]
    compared: Sequence[str] = [*difflib.unified_diff(old, new, n=1, lineterm="")][2:]
    if not before or not after:
        compared = compared[1:]  # a text that is all new or gone needs no line numbers
    shown = tuple(_shortened(visible(line)) for line in compared[:MAX_LINES])
    more = len(compared) - len(shown)
    return (*shown, f"… {more} more lines") if more > 0 else shown


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_WIDTH else line[: MAX_WIDTH - 1] + "…"


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it."""
    return _MARKUP.sub(r"\\\1", text)


def fenced(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines in a fence that none of them can end."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return (f"{fence}diff", *lines, fence)
