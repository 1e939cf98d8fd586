"""Clocks and ids.

No other module reads the time or creates ids. Times inside the program are aware UTC datetimes; stored and sent as
ISO-8601 text with microseconds and ``+00:00``.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kneo.errors import InvalidValue


class Clock(Protocol):
    """A source of the current time; tests inject one that they can move."""

    def now(self) -> datetime:
        """Return the current time, UTC and aware."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - this is that one place


class ManualClock:
    """A clock that moves only by ``advance``; for tests and simulations."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta) -> None:
        self._now += by


def monotonic() -> float:
    """Return seconds of a clock that never goes back, for measuring durations."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Sleep. Loops that must stop early wait on an event instead."""
    time.sleep(seconds)


def isoformat(moment: datetime) -> str:
    """Format a time so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def parse_time(text: str) -> datetime:
    """Parse an ISO-8601 time; a text without a zone is refused.

    Raises:
        InvalidValue: the text is not a time with a zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"{text[:60]!r} is not an ISO-8601 time such as 2026-01-31T12:00:00+00:00."
        raise InvalidValue(msg) from error
    if moment.tzinfo is None:
        msg = f"{text[:60]!r} has no time zone; end it with Z or an offset such as +01:00."
        raise InvalidValue(msg)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        msg = f"{text[:60]!r} lies outside the years 1 to 9999 in UTC."
        raise InvalidValue(msg) from error


_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta:
    """Parse a duration: ``90s``, ``15m``, ``24h`` or ``7d``.

    Raises:
        InvalidValue: anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        msg = f"{text[:60]!r} is not a duration; write a number and s, m, h or d, such as 15m."
        raise InvalidValue(msg)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""The base-32 digits of ten bits."""

_RANDOM_BITS = 80


_RANDOM_BYTES = _RANDOM_BITS // 8

_DRAWN_IDS = 400
"""Ids whose random parts are drawn at once: each call for random bytes lets another thread of the process run, for milliseconds."""


class _Ids:
    """Ids that only increase within a process, so that rows written together stay in the order they were written."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: a forked process has no id in common with its parent."""
        self._lock = threading.Lock()
        self._last = 0
        self._drawn = memoryview(b"")

    def next(self, now: datetime) -> int:
        first = int(now.timestamp() * 1000) << _RANDOM_BITS
        with self._lock:
            if not self._drawn:
                self._drawn = memoryview(os.urandom(_RANDOM_BYTES * _DRAWN_IDS))
            chance, self._drawn = int.from_bytes(self._drawn[:_RANDOM_BYTES]), self._drawn[_RANDOM_BYTES:]
            # Within one millisecond the random part grows by a random step, so that the next id cannot be guessed.
            same = first >> _RANDOM_BITS == self._last >> _RANDOM_BITS
            self._last = self._last + 1 + (chance >> _RANDOM_BITS // 2) if same else first | chance
            return self._last


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.reset)


def new_id(prefix: str, now: datetime) -> str:
    """Create an opaque id whose text order is its time order: ``run_`` and 26 characters.

    Ten characters carry milliseconds since 1970, sixteen are random (80 bits), as in ULIDs. Ids of one process and one
    millisecond are in the order of their creation.
    """
    return _spelled(prefix, _ids.next(now))


def derived_id(prefix: str, moment: datetime, source: str) -> str:
    """Return the id of something that was created elsewhere at a time: the same for the same source."""
    rest = int.from_bytes(hashlib.sha256(source.encode()).digest()[: _RANDOM_BITS // 8])
    return _spelled(prefix, int(moment.timestamp() * 1000) << _RANDOM_BITS | rest)


def first_id(prefix: str, moment: datetime) -> str:
    """Return a text that sorts after every id created before a time and before every id created at it or later."""
    # No id was created before 1970.
    return _spelled(prefix, max(0, int(moment.timestamp() * 1000)) << _RANDOM_BITS)


def _spelled(prefix: str, number: int) -> str:
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
