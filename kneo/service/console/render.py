"""Templates of the console, their static files, and their filters: times, digests and lengths in words."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from kneo.clock import parse_time
from kneo.names import reveal
from kneo.records.run import dollars

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


_FOLDER = Path(__file__).parent

STATIC: Mapping[str, bytes] = {
    path.name: path.read_bytes() for path in sorted((_FOLDER / "static").iterdir()) if path.is_file()
}
"""The static files by name."""

STATIC_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


def version_of(content: bytes) -> str:
    """Return the query of a static file's address, so that a browser keeps each version for ever."""
    return hashlib.sha256(content).hexdigest()[:12]


STATIC_HASH = version_of(b"".join(STATIC.values()))
"""The version of the static files."""

ICONS: Mapping[str, str] = {
    "ok": "M4 12.5l5 5L20 6.5",
    "no": "M6 6l12 12M18 6L6 18",
    "clock": "M12 7v5l3.5 2M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18",
    "hold": "M9 5v14M15 5v14",
    "play": "M7 5l11 7-11 7z",
    "dot": "M12 10a2 2 0 1 0 0 4a2 2 0 0 0 0-4",
    "go": "M5 12h14M13 6l6 6-6 6",
    "find": "M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l4.5 4.5",
    "inbox": "M4 13l2.5-8h11L20 13v6H4zM4 13h5l1 2.5h4L15 13h5",
    "environments": "M12 3l9 5-9 5-9-5zM3 13l9 5 9-5",
    "runs": "M4 6h10M4 12h16M4 18h7",
    "audit": "M6 3h9l4 4v14H6zM9 12l2 2 4-4",
    "seal": "M12 3l7 3v5c0 5-3 8-7 10c-4-2-7-5-7-10V6zM9 12l2 2 4-4",
    "person": "M12 4a4 4 0 1 0 0 8a4 4 0 0 0 0-8M5 20c1-4 4-5 7-5s6 1 7 5",
}
"""The paths of icons, in a square of 24."""


def icon(name: str) -> Markup:
    """Return an icon, which assistive technology skips."""
    return Markup('<svg class="i" viewBox="0 0 24 24" aria-hidden="true"><path d="{}"/></svg>').format(ICONS[name])


def _reveal(value: object) -> object:
    """Make invisible characters of every printed text visible; markup, and ``exact`` texts of form fields, stay."""
    return reveal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _dollars(micros: int | None) -> str:
    """Format a cost; empty where it is not known."""
    return dollars(micros) if micros is not None else ""


_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_reveal,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(icon=icon, static_hash=STATIC_HASH, count=count)
_environment.filters.update(
    when=when,
    at=at,
    short=short,
    peek=peek,
    span=span,
    exact=exact,
    dollars=_dollars,
    shell=shlex.quote,
)


def compile_template(text: str) -> Callable[[Mapping[str, object]], Markup]:
    """Return the function that fills in a template of an extension."""
    template = _environment.from_string(text)
    return lambda values: Markup(template.render(values))  # noqa: S704 - the template escapes its values


def render(template: str, values: Mapping[str, object]) -> str:
    """Return the HTML of a template. Halves of surrogate pairs, which earlier versions kept, are replaced."""
    return _environment.get_template(template).render(values).encode(errors="replace").decode()
