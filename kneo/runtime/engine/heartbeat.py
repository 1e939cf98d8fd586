"""Heartbeats of the loops of a worker: a loop that hangs makes its process not alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kneo.clock import monotonic

LATE_SECONDS = 300.0
"""The age of a heartbeat from which a loop counts as hanging. A turn may wait half a minute for a connection, or seal a long log."""


class Heartbeat:
    """The latest turn of one loop. From any thread."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._at = now()

    def beat(self) -> None:
        """Record that a turn begins."""
        self._at = self._now()

    @property
    def age_seconds(self) -> float:
        return max(0.0, self._now() - self._at)


class Heartbeats:
    """The heartbeats of the loops of one worker."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.steps = Heartbeat(now)
        """Looks for due runs."""
        self.timers = Heartbeat(now)
        """Processes deadlines, or waits for the process that does."""

    def ages(self) -> Mapping[str, float]:
        """Return the ages in seconds, by loop."""
        return {"steps": self.steps.age_seconds, "timers": self.timers.age_seconds}

    def is_alive(self) -> bool:
        """Return whether every loop had a turn in time. An unreachable database ends no loop."""
        return max(self.ages().values()) <= LATE_SECONDS
