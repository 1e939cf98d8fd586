"""Values in the words of pages: times, digests, lengths. Pure."""

from __future__ import annotations

from datetime import datetime

from markupsafe import Markup, escape

from kneo.clock import parse_time

PEEK_CHARS = 160
"""Characters of a text in a row of a list."""

READ_CHARS = 2_000
"""Characters of a text that are looked at for its first words."""

DIGEST_CHARS = 12


def exact(text: str) -> Markup:
    """Return a text for a form field that is sent back: escaped, and with every character as it is."""
    return escape(text)


def peek(text: str | None) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join((text or "")[:READ_CHARS].split())
    return line if len(line) <= PEEK_CHARS else f"{line[: PEEK_CHARS - 1]}…"


def short(digest: str | None) -> str:
    """Return the first characters of a digest, without its algorithm."""
    return (digest or "").rpartition(":")[2][:DIGEST_CHARS]


def span(seconds: float) -> str:
    """Return a length of time in one or two units."""
    length = abs(seconds)
    if length < 0.95:
        return f"{length * 1000:.0f} ms"
    if length < 59.5:
        return f"{length:.1f} s" if length < 9.95 else f"{length:.0f} s"
    whole = round(length)
    for size, unit, part, smaller in _UNITS:
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest and whole < 10 * size else "")
    return f"{whole} s"


_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def when(at: str, now: datetime) -> Markup:
    """Return a time relative to now, with the absolute time in its title; the script writes the reader's own zone."""
    moment = parse_time(at)
    seconds = (moment - now).total_seconds()
    past = "just now" if seconds > -5 else f"{span(seconds)} ago"
    text = f"in {span(seconds)}" if seconds > 0 else past
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), absolute(moment), text
    )


def at(text: str) -> Markup:
    """Return an absolute time."""
    moment = parse_time(text)
    return Markup('<time datetime="{}" data-absolute>{}</time>').format(
        moment.isoformat(timespec="seconds"), absolute(moment)
    )


def absolute(moment: datetime) -> str:
    """Return a time with its date, in UTC."""
    return moment.strftime("%d %b %Y, %H:%M:%S UTC")


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 task``, ``2 tasks``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
