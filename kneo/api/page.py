"""What views share: fields that repeat those of a record, pages of lists, and the limits of a text search.

Texts have no index, so a search reads every row of its period.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from types import UnionType
from typing import Annotated, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field

from kneo.api.operation import Context
from kneo.clock import isoformat, parse_duration, parse_time
from kneo.errors import Invalid, InvalidValue
from kneo.store.engine import Tx
from kneo.store.time_limit import StatementTooSlow, limit_statements

WINDOW = 10_000
"""The deepest offset."""

Word = Annotated[str, Field(max_length=200)]
Limit = Annotated[int, Field(ge=1, le=1000)]
Offset = Annotated[int, Field(ge=0, le=WINDOW)]
Order = Literal["asc", "desc"]
Moment = Annotated[str, Field(max_length=60, description="A time, as in 2026-01-31T12:00:00Z.")]


MAX_PERIOD = timedelta(days=366)


def parse_period(since: str) -> timedelta:
    """Return the length of a period that ends now.

    Raises:
        InvalidValue: it is no duration of up to 366 days.
    """
    period = parse_duration(since)
    if not timedelta(0) < period <= MAX_PERIOD:
        msg = f"A period is up to {MAX_PERIOD.days} days long."
        raise InvalidValue(msg, field="since")
    return period


@dataclass(frozen=True, kw_only=True)
class PageView:
    """The parameters of a page; ``window`` is the deepest offset."""

    count: int
    total: int
    window: int = WINDOW
    limit: int
    offset: int
    sort_by: str
    sort_order: Order


class PageFields(TypedDict):
    """The fields of a page without its items."""

    count: int
    total: int
    limit: int
    offset: int
    sort_by: str
    sort_order: Order


def page_fields(
    items: Sequence[object], total: int, *, limit: int, offset: int, sort_by: str, sort_order: Order
) -> PageFields:
    """Return the fields of a page of these items: ``RunPageView(runs=views, **page_fields(views, total, …))``."""
    return PageFields(count=len(items), total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)


def total_of(
    items: Sequence[object], count: Callable[[], int], *, limit: int, offset: int, after: str | None = None
) -> int:
    """Return the number of all items of a list; a list that ends on this page need not be counted."""
    ends = after is None and len(items) < limit and (items or not offset)
    return offset + len(items) if ends else count()


class InvalidTime(InvalidValue):
    """A text that is not a time."""

    default_code = "invalid_timestamp"


def stored_time(text: str | None) -> str | None:
    """Format a time as the database stores it.

    Raises:
        InvalidTime: the text is not a time.
    """
    if text is None:
        return None
    try:
        return isoformat(parse_time(text))
    except Invalid as error:
        raise InvalidTime(error.message) from error


DEFAULT_PERIOD = timedelta(days=30)
MAX_PERIOD = timedelta(days=366)


@dataclass(frozen=True, kw_only=True)
class SearchPeriod:
    """The period of creation that a text search covered, the end excluded; no end is now."""

    created_after: str
    created_before: str | None

    def half(self, now: datetime) -> str:
        """Return the time in the middle."""
        begin = parse_time(self.created_after)
        end = parse_time(self.created_before) if self.created_before is not None else now
        return isoformat(begin + (end - begin) / 2)


def search_period(now: datetime, created_after: str | None, created_before: str | None) -> SearchPeriod:
    """Return the period of a text search: what the caller gave, by default the last 30 days before its end.

    Raises:
        InvalidTime: a text is not a time.
        InvalidValue: the period is longer than ``MAX_PERIOD``.
    """
    after, before = stored_time(created_after), stored_time(created_before)
    end = parse_time(before) if before is not None else now
    if after is None:
        # Year 1 has no earlier month to search.
        reach = min(DEFAULT_PERIOD, end - datetime.min.replace(tzinfo=end.tzinfo))
        after = isoformat(end - reach)
    elif end - parse_time(after) > MAX_PERIOD:
        msg = f"A text search covers up to {MAX_PERIOD.days} days; from {after} to {before or 'now'} is longer."
        hint = "Set created_after, and created_before for an earlier period."
        raise InvalidValue(msg, field="created_after", hint=hint)
    return SearchPeriod(created_after=after, created_before=before)


@contextlib.contextmanager
def limit_search(context: Context, tx: Tx, text: str | None, searched: SearchPeriod | None) -> Iterator[None]:
    """End the statements of a text search that take too long; without a text nothing is limited.

    Raises:
        InvalidValue: ``search_too_slow``: the search was ended. The hint names a shorter period.
    """
    if not text:
        yield
        return
    seconds = context.settings.http.search_seconds
    try:
        with limit_statements(tx, seconds):
            yield
    except StatementTooSlow as error:
        if searched is None:
            period, hint = "", "Search for another text, or name the environment."
        else:
            period = f" from {searched.created_after} to {searched.created_before or 'now'}"
            hint = f"Search a shorter period: set created_after to {searched.half(context.store.clock.now())}."
        msg = f"The text search{period} took longer than {seconds:g} s and was ended."
        raise InvalidValue(msg, code="search_too_slow", field="created_after", hint=hint) from error


V = TypeVar("V")


@cache
def _shared_fields(view: type, record: type, others: frozenset[str]) -> tuple[str, ...]:
    """Return the names of the fields that a view shares with a record, without those that are passed."""
    wanted, stored = get_type_hints(view), get_type_hints(record)
    names = tuple(name for name in wanted if name in stored and name not in others)
    different = [name for name in names if not _members(stored[name]) <= _members(wanted[name])]
    if different:
        msg = f"{view.__name__} and {record.__name__} have fields of different types: {', '.join(different)}."
        raise TypeError(msg)
    return names


def _members(kind: object) -> frozenset[object]:
    """Return the types of a union; a type that is no union is its only member."""
    return frozenset(get_args(kind)) if get_origin(kind) in {Union, UnionType} else frozenset({kind})


def view_of(view: type[V], record: object, **others: object) -> V:
    """Build a view from the fields of a record.

    Args:
        view: The view.
        record: The record, whose fields become those of the same name.
        others: The fields that the record lacks, and those that differ from the record's.

    Raises:
        TypeError: a field of the view is missing, or has another type in the record and is not among the others.
    """
    names = _shared_fields(view, type(record), frozenset(others))  # type: ignore[arg-type]  # mypy: a class has a hash
    return view(**{name: getattr(record, name) for name in names}, **others)
