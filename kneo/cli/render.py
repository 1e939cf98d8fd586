"""Terminal output: lines with a mark, tables, panels and JSON.

Results go to standard output, warnings and errors to standard error, so that a result can be piped. Colour is used on terminals only.
The functions that draw with rich import it: the import takes longer than most commands.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from kneo.clock import parse_time
from kneo.names import plain
from kneo.settings import colour_wanted

if TYPE_CHECKING:
    from rich.console import Console


DONE, CAREFUL, FAILED, OPEN = "✓", "⚠", "✗", "·"

_COLOURS = {DONE: "green", CAREFUL: "yellow", FAILED: "red", OPEN: "bright_black"}

PIPED_COLUMNS = 160
"""Width of tables in a pipe; digests fit on one line."""

SHORT_CHARS = 12
"""The characters of a digest or commit in a table."""


def short_digest(digest: str) -> str:
    """Return the first characters of a digest, without its algorithm."""
    return digest.removeprefix("sha256:")[:SHORT_CHARS]


def short_revision(revision: str) -> str:
    """Return a revision ``main@sha1:3fb5f52…`` with the first characters of its commit."""
    ref, _, commit = revision.rpartition("@")
    return f"{ref}@{commit.rpartition(':')[2][:SHORT_CHARS]}".removeprefix("@")


def count(number: int, noun: str) -> str:
    """Return a number of things: ``1 change``, ``2 changes``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


CLOCKS_DIFFER = 5


def relative(at: str | None, now: datetime) -> str:
    """Return a time as people say it: ``4 min ago``, ``in 2 h``; empty without one.

    A time at most `CLOCKS_DIFFER` seconds ahead is ``just now``: the clock of the service may be ahead of this one.
    """
    if at is None:
        return ""
    seconds = int((parse_time(at) - now).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= size:
            length = f"{abs(seconds) // size} {unit}"
            return f"in {length}" if seconds > 0 else f"{length} ago"
    return "in less than a minute" if seconds > CLOCKS_DIFFER else "just now"


def line(mark: str, text: str, *, err: bool = False) -> None:
    """Print one line that begins with a mark such as ✓."""
    styled = typer.style(mark, fg=_COLOURS.get(mark)) if _colour(err=err) else mark
    typer.echo(f"{styled} {plain(text)}", err=err)


def text(content: str, *, err: bool = False) -> None:
    """Print a text of several lines, in which terminals and runners of CI find nothing to obey."""
    typer.echo(plain(content), err=err)


def piece(content: str) -> None:
    """Print a piece of a line at once."""
    typer.echo(plain(content), nl=False)
    sys.stdout.flush()


def success(message: str) -> None:
    """Print a success."""
    line(DONE, message)


def warning(message: str, hint: str | None = None) -> None:
    """Print a warning on standard error."""
    line(CAREFUL, message, err=True)
    if hint:
        text(f"  {hint}", err=True)


def failure(message: str, hint: str | None = None) -> None:
    """Print an error and a hint on standard error."""
    line(FAILED, message, err=True)
    if hint:
        text(f"  {hint}", err=True)


def print_json(value: object) -> None:
    """Print JSON, indented by two; views as their fields; times, paths and digests as their text.

    ``plain`` writes a control character as JSON encodes it, so the value stays the same.
    """
    typer.echo(plain(json.dumps(value, indent=2, ensure_ascii=False, default=_encoded)))


def print_line(value: object) -> None:
    """Print JSON on one line and flush it, for readers that follow a stream."""
    typer.echo(plain(json.dumps(value, ensure_ascii=False, default=_encoded)))
    sys.stdout.flush()


def _encoded(value: object) -> object:
    model_dump = getattr(value, "model_dump", None)  # of pydantic, whose import would double the time of kneo --help
    if callable(model_dump):
        return model_dump(mode="json")
    return vars(value) if dataclasses.is_dataclass(value) else str(value)


def at_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def emit(value: object, *, as_json: bool, text: Callable[[], None]) -> None:
    """Print the result of a command: the value as JSON, or what ``text`` prints."""
    if as_json:
        print_json(value)
    else:
        text()


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, unbroken: Collection[str] = ()
) -> None:
    """Print a table. Cells fold rather than vanish on a narrow terminal; None is an empty cell.

    Args:
        title: The title of the table.
        columns: The heads of the columns.
        rows: The cells, row by row.
        unbroken: Columns whose cells stay on one line, so that people can copy them.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold", no_wrap=column in unbroken)
    for row in rows:
        drawn.add_row(*(Text(plain("" if cell is None else str(cell))) for cell in row))
    _console().print(drawn)


def panel(title: str, lines: Iterable[tuple[str, object]]) -> None:
    """Print named values in a frame: ``Status: completed``."""
    from rich.panel import Panel
    from rich.text import Text

    body = Text("\n".join(plain(f"{name}: {value}") for name, value in lines))
    _console().print(Panel(body, title=Text(plain(title)), title_align="left", expand=False))


def _console() -> Console:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else PIPED_COLUMNS,
        no_color=not _colour(err=False),
        highlight=False,
        soft_wrap=False,
    )


def _colour(*, err: bool) -> bool:
    return colour_wanted() and (sys.stderr if err else sys.stdout).isatty()
