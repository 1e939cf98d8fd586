"""Groups of options that several commands share, declared once as a dataclass; among them the period of a list."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar, get_type_hints

import typer

from kneo.cli import render
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.errors import InvalidValue

if TYPE_CHECKING:
    from kneo.api.page import SearchPeriod


R = TypeVar("R")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class OptionGroup:
    """A group of options: each field is one option, with its default."""


def expand_groups(function: Callable[..., R]) -> Callable[..., R]:
    """Return a command that takes the options of each group instead of the group.

    A parameter is a group if its type is a subclass of ``OptionGroup``; it is keyword-only and has no default.
    """
    signature = inspect.signature(function, eval_str=True)
    groups = {name: one.annotation for name, one in signature.parameters.items() if _is_group(one.annotation)}
    if not groups:
        return function

    @functools.wraps(function)
    def command(*arguments: object, **values: object) -> R:
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return function(*arguments, **values, **built)

    parameters = [
        option
        for one in signature.parameters.values()
        for option in (_options(one.annotation) if one.name in groups else (one,))
    ]
    vars(command)["__signature__"] = signature.replace(parameters=parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, OptionGroup)


def _options(group: type[OptionGroup]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        default = inspect.Parameter.empty if default is MISSING else default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name])


@dataclass(frozen=True)
class Period(OptionGroup):
    """A period of creation; the end is excluded."""

    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Only created since: a time, a date (UTC), or a duration ago: 7d."
        ),
    ] = None
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only created before: a time, or a duration ago.")
    ] = None

    @property
    def created_after(self) -> str | None:
        return parse_since(self.since)

    @property
    def created_before(self) -> str | None:
        return parse_since(self.until)

    def show(self, searched: SearchPeriod | None) -> None:
        """Print the period of a text search that had no option for it."""
        if searched is not None and self.since is None:
            render.text(f"Searched what was created since {searched.created_after}. To search earlier, pass --since.")


def time_after(duration: str, start: datetime | None = None) -> datetime:
    """Return the end of a duration that begins at a time, by default now.

    Raises:
        InvalidValue: the text is no duration, or its end is after the year 9999.
    """
    return _shifted(duration, parse_duration(duration), start)


def parse_until(text: str | None) -> str | None:
    """Return an end that is a time, or a duration from now.

    Raises:
        InvalidValue: the text is neither, or the end is after the year 9999.
    """
    if text is None:
        return None
    return isoformat(time_after(text) if _is_duration(text) else parse_time(text))


def parse_since(text: str | None) -> str | None:
    """Return a beginning that is a time, a date, which is its first moment in UTC, or a duration ago.

    Raises:
        InvalidValue: the text is none of them, or the beginning is before the year 1.
    """
    if text is None:
        return None
    if _is_duration(text):
        return isoformat(_shifted(text, -parse_duration(text)))
    return isoformat(parse_time(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text))


_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _is_duration(text: str) -> bool:
    return text[-1:] in {"s", "m", "h", "d"} and text[:-1].isdigit()


def _shifted(text: str, by: timedelta, start: datetime | None = None) -> datetime:
    try:
        return (start or SystemClock().now()) + by
    except OverflowError as error:
        msg = f"{text[:60]} is longer than there are years: a time lies between the years 1 and 9999."
        raise InvalidValue(msg) from error
