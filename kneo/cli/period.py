"""The options ``--since`` and ``--until`` of lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kneo.cli import render
from kneo.cli.options import OptionGroup
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.errors import InvalidValue

if TYPE_CHECKING:
    from kneo.api.search_period import SearchPeriod


@dataclass(frozen=True)
class Period(OptionGroup):
    """A period of creation; the end is excluded."""

    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only created since: a time, or a duration ago: 7d.")
    ] = None
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only created before: a time, or a duration ago.")
    ] = None

    @property
    def created_after(self) -> str | None:
        return _time(self.since)

    @property
    def created_before(self) -> str | None:
        return _time(self.until)

    def show(self, searched: SearchPeriod | None) -> None:
        """Print the period of a text search that had no option for it."""
        if searched is not None and self.since is None:
            render.text(f"Searched what was created since {searched.created_after}. To search earlier, pass --since.")


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    if text[-1:] not in {"s", "m", "h", "d"} or not text[:-1].isdigit():
        return isoformat(parse_time(text))
    try:
        return isoformat(SystemClock().now() - parse_duration(text))
    except OverflowError as error:
        msg = f"{text[:60]} ago is before the year 1."
        raise InvalidValue(msg) from error
