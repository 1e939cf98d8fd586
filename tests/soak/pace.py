"""The pace of a soak: whether decisions keep up with starts, decided from counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""The time over which rates are counted: longer than any fault and what follows it."""

BACKLOG_SECONDS = 60.0
"""A fleet that carries the rate has at most the runs of this many seconds before it, also after a fault."""

LEAST_SHARE = 0.5
"""A fleet that carries the rate starts more than this share of what was ordered in a window."""


@dataclass(frozen=True)
class Pace:
    """Counts at one time.

    Attributes:
        at: The time in seconds.
        ordered: Runs that were to be started.
        started: Runs whose start a service acknowledged.
        decided: Tasks that were decided.
        waiting: Runs that wait for a decision which people are going to make.
    """

    at: float
    ordered: int
    started: int
    decided: int
    waiting: int


class Overload(Exception):
    """The fleet does not carry the rate."""


class PaceCheck:
    """Compares the counts of a soak with its rate.

    Args:
        rate: Runs that are ordered per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._paces: deque[Pace] = deque()

    def check(self, pace: Pace) -> None:
        """Take the present counts.

        Raises:
            Overload: the fleet does not carry the rate.
        """
        self._paces.append(pace)
        while len(self._paces) > 1 and pace.at - self._paces[1].at >= WINDOW_SECONDS:
            self._paces.popleft()
        first = self._paces[0]
        seconds = pace.at - first.at
        if seconds < WINDOW_SECONDS:
            return
        carried = (pace.decided - first.decided) / seconds
        if pace.waiting > self.rate * BACKLOG_SECONDS:
            reason = f"{pace.waiting} runs wait for a decision"
        elif pace.started - first.started < LEAST_SHARE * (pace.ordered - first.ordered):
            reason = f"{pace.started - first.started} of {pace.ordered - first.ordered} ordered runs were started"
        else:
            return
        msg = (
            f"The fleet carries {carried:.1f} runs per second and the rate is {self.rate:.1f}: after {seconds:.0f} s {reason}. "
            f"Run again with RATE={max(1, int(0.6 * carried))}, which leaves a margin."
        )
        raise Overload(msg)
