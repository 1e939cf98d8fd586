"""The time axis of a run, on which stretches without work are shorter than they were. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LENGTH = 1000.0
"""The length of the axis."""

MAX_SHARE = 4.0
"""A stretch of waiting is at most the length of all work, divided by this."""

MIN_STRETCH = 0.25
"""Seconds of waiting that are never squeezed further."""

Interval = tuple[float, float]
"""A begin and an end, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the axis between two times, with its place on the axis."""

    start: float
    end: float
    offset: float
    length: float
    squeezed: bool


@dataclass(frozen=True)
class TimeAxis:
    """A time axis; ``at`` maps a time to 0…``LENGTH`` and keeps the order of times."""

    stretches: tuple[Stretch, ...]

    @classmethod
    def of(cls, work: Sequence[Interval], waits: Sequence[Interval] = ()) -> TimeAxis:
        """Return the axis of intervals of work and of waiting; stretches in which no work happens are squeezed."""
        points = sorted({time for interval in (*work, *waits) for time in interval})
        if len(points) < 2:
            start = points[0] if points else 0.0
            return cls((Stretch(start=start, end=start + 1, offset=0, length=LENGTH, squeezed=False),))
        busy = _busy(points, work)
        spans = [end - start for start, end in pairwise(points)]
        worked = sum(span for span, is_busy in zip(spans, busy, strict=True) if is_busy)
        most = max(worked / MAX_SHARE, MIN_STRETCH)
        lengths = [span if is_busy else min(span, most) for span, is_busy in zip(spans, busy, strict=True)]
        scale = LENGTH / (sum(lengths) or 1)
        stretches, offset = [], 0.0
        for start, span, length in zip(points, spans, lengths, strict=False):
            stretches.append(
                Stretch(
                    start=start,
                    end=start + span,
                    offset=offset * scale,
                    length=length * scale,
                    squeezed=span > length * 1.5,
                )
            )
            offset += length
        return cls(tuple(stretches))

    def at(self, time: float) -> float:
        """Return the place of a time on the axis."""
        number = max(bisect_right(self.stretches, time, key=lambda stretch: stretch.start) - 1, 0)
        stretch = self.stretches[number]
        share = (time - stretch.start) / (stretch.end - stretch.start)
        return stretch.offset + stretch.length * min(max(share, 0.0), 1.0)

    @property
    def squeezed(self) -> tuple[Stretch, ...]:
        """The squeezed stretches."""
        return tuple(stretch for stretch in self.stretches if stretch.squeezed)


def _busy(points: Sequence[float], work: Sequence[Interval]) -> list[bool]:
    """Return for each stretch between two points whether work happens in it."""
    change = dict.fromkeys(points, 0)
    for start, end in work:
        if end > start:
            change[start] += 1
            change[end] -= 1
    busy, depth = [], 0
    for point in points[:-1]:
        depth += change[point]
        busy.append(depth > 0)
    return busy
