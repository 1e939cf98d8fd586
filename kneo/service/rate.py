"""How much one caller may ask of one process."""

from __future__ import annotations

from threading import Lock

from kneo.clock import monotonic
from kneo.errors import Transient

MAX_CALLERS = 10_000
"""Callers remembered at once; names of keys are few, so more means something else counts them."""


class TooMany(Transient):
    """More than was agreed; nothing is wrong with the request."""

    http_status = 429
    default_code = "rate_limited"


class Rate:
    """Lets each caller do so many things in a minute, evenly or all at once.

    Args:
        per_minute: How many; 0 lets everything through.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = Lock()

    def take(self, caller: str) -> float:
        """Count one; return 0, or the seconds after which there is room for it again."""
        if not self.per_minute:
            return 0.0
        now = monotonic()
        per_second = self.per_minute / 60
        with self._lock:
            left, since = self._left.get(caller, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - since) * per_second)
            allowed = left >= 1
            self._left[caller] = (left - 1 if allowed else left, now)
            if len(self._left) > MAX_CALLERS:
                self._left.pop(next(iter(self._left)))
        return 0.0 if allowed else (1 - left) / per_second

    def check(self, caller: str) -> None:
        """Count one.

        Raises:
            TooMany: there is no room for it; its details say when there will be.
        """
        wait = self.take(caller)
        if wait:
            msg = f"{caller} may send {self.per_minute} requests in a minute."
            raise TooMany(msg, retry_after=max(1, round(wait + 0.5)))
