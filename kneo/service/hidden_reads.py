"""The audit record of requests about environments that their callers may not read: a count for each minute, without flooding."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from kneo.errors import KneoError
from kneo.store import audit
from kneo.store.engine import Store

log = logging.getLogger("kneo.service")

WINDOW_SECONDS = 60.0
"""Seconds after the first request until the counts are recorded."""

MAX_COUNTED = 10_000
"""Pairs of a caller and an environment that are counted at once; further ones are recorded without a caller."""


class HiddenReads:
    """Counts requests about hidden environments, by caller and environment.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: Counter[tuple[str | None, str]] = Counter()
        self._lock = threading.Lock()

    def count(self, caller: str | None, environment: str, number: int = 1) -> None:
        """Count a request; the first one of a minute begins it."""
        with self._lock:
            if not self._counts:
                timer = threading.Timer(WINDOW_SECONDS, self.record)
                timer.daemon = True
                timer.start()
            is_full = len(self._counts) >= MAX_COUNTED and (caller, environment) not in self._counts
            self._counts[None if is_full else caller, environment] += number

    def record(self) -> None:
        """Record the counts, and begin again. Where the database does not respond, they are recorded with the next ones."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with self._store.write() as tx:
                for (caller, environment), count in counts.items():
                    audit.record(tx, "access.refused", actor=caller, environment=environment, metadata={"count": count})
        except KneoError as error:
            log.warning("refused reads could not be recorded: %s", error)
            for (caller, environment), count in counts.items():
                self.count(caller, environment, count)
