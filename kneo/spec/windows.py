"""Time windows of changes: weekly, in a time zone.

``"Fri 16:00 - Mon 08:00"`` is one stretch of every week; ``"Mon-Fri 09:00 - 17:00"``, ``"Sat,Sun 10:00 - 12:00"`` and
``"* 06:00 - 20:00"`` repeat on each named day, past midnight where the end is not after the start. The start belongs
to a window, the end does not. Windows follow the wall clock of their zone, so a day with a clock change is an hour
shorter or longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kneo.errors import Invalid

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_OF_THE_MACHINE = frozenset({"localtime", "posixrules", "Factory"})
"""Files of the zone database that are another zone on each machine, or none."""

_VARIANTS = ("posix/", "right/")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_EXPRESSION = re.compile(
    rf"(?P<days>\*|{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*) +(?P<start>\d\d:\d\d) +- +"
    rf"(?:(?P<last>{_DAY}) +)?(?P<end>\d\d:\d\d)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Window:
    """A repeating stretch of time in which changes are allowed, or in which they are denied.

    Attributes:
        effect: ``allow`` or ``deny``.
        expression: As it was written.
        timezone: IANA name, such as ``Europe/Berlin``.
        spans: Start and end in minutes since Monday 00:00; an end may lie in the next week.
    """

    effect: Literal["allow", "deny"]
    expression: str
    timezone: str
    spans: tuple[tuple[int, int], ...]

    def contains(self, now: datetime) -> bool:
        """Tell whether a time is in this window."""
        local = now.astimezone(ZoneInfo(self.timezone))
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return any(start <= minute < end or start <= minute + _WEEK_MINUTES < end for start, end in self.spans)

    def is_open(self, now: datetime) -> bool:
        """Tell whether this window, taken alone, lets a change happen."""
        return self.contains(now) == (self.effect == "allow")

    def edges(self, now: datetime) -> Iterator[datetime]:
        """Yield the moments of about a week around a moment at which this window begins or ends, in no order."""
        zone = ZoneInfo(self.timezone)
        local = now.astimezone(zone)
        monday = (local - timedelta(days=local.weekday())).replace(
            hour=0, minute=0, second=0, microsecond=0, tzinfo=None
        )
        for start, end in self.spans:
            for week in (-1, 0, 1):
                for minute in (start, end):
                    moment = monday + timedelta(weeks=week, minutes=minute)
                    yield moment.replace(tzinfo=zone).astimezone(UTC)


def parse_window(
    effect: Literal["allow", "deny"], expression: str, timezone: str = "UTC", *, accepted: bool = False
) -> Window:
    """Read a window.

    Args:
        effect: What it does.
        expression: When.
        timezone: Where.
        accepted: Whether it was accepted by an earlier version, which took windows that are never, and zones of a machine.

    Raises:
        Invalid: the expression or the time zone is not one.
    """
    match = _EXPRESSION.fullmatch(expression.strip())
    if match is None:
        message = f"{expression[:80]!r} is not a window."
        raise Invalid(message, hint='Write it like "Fri 16:00 - Mon 08:00" or "Mon-Fri 09:00 - 17:00".')
    if not accepted and (timezone in _OF_THE_MACHINE or timezone.startswith(_VARIANTS)):
        message = f"{timezone[:80]!r} is another time zone on each machine, or none."
        raise Invalid(message, hint="Use an IANA name such as Europe/Berlin, or UTC.")
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"{timezone[:80]!r} is not a time zone."
        raise Invalid(message, hint="Use an IANA name such as Europe/Berlin, or UTC.") from error
    days = _days(match["days"])
    start, end = _minutes(match["start"]), _minutes(match["end"])
    if match["last"] is None:
        spans = tuple(_span(day * _DAY_MINUTES + start, day * _DAY_MINUTES + end, _DAY_MINUTES) for day in days)
    elif len(days) == 1:
        first, last = days[0] * _DAY_MINUTES + start, DAYS.index(match["last"]) * _DAY_MINUTES + end
        if not accepted and first % _WEEK_MINUTES == last and match["start"] == "24:00" and match["end"] == "00:00":
            raise _never(expression)
        spans = (_span(first, last, _WEEK_MINUTES),)
    else:
        message = f"{expression[:80]!r} begins on several days and ends on one."
        raise Invalid(message, hint="Name one day at each end, or no day at the end.")
    if not accepted and any(start == end for start, end in spans):
        raise _never(expression)
    return Window(effect, expression.strip(), timezone, spans)


def _never(expression: str) -> Invalid:
    message = f"{expression[:80]!r} ends when it begins, so it is never."
    hint = 'Write 24:00 at the end of a day, or 00:00 at the beginning, as in "Sun 00:00 - 24:00".'
    return Invalid(message, hint=hint)


def windows_open(windows: Sequence[Window], now: datetime) -> bool:
    """Tell whether changes may happen: in no denied window and, where any are allowed, in one of those."""
    if any(window.effect == "deny" and window.contains(now) for window in windows):
        return False
    allowed = [window for window in windows if window.effect == "allow"]
    return not allowed or any(window.contains(now) for window in allowed)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """Return the first moment from now on at which changes may happen; None when there is none within a week."""
    if windows_open(windows, now):
        return now
    edges = sorted({edge for window in windows for edge in window.edges(now) if edge > now})
    return next((edge for edge in edges if windows_open(windows, edge)), None)


def _days(text: str) -> list[int]:
    if text == "*":
        return list(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, length = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7
        days |= {(begin + offset) % 7 for offset in range(length + 1)}
    return sorted(days)


def _minutes(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        message = f"{text} is not a time of day."
        raise Invalid(message, hint="Write hours 00 to 24 and minutes 00 to 59.")
    return hours * 60 + minutes


def _span(start: int, end: int, around: int) -> tuple[int, int]:
    return start, end if end > start else end + around
