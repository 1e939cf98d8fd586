"""A database that is opened by the first who needs it: checking a spec must not make one."""

from __future__ import annotations

import threading

from kneo.clock import Clock, SystemClock
from kneo.store.engine import FindKey, Store, no_key
from kneo.store.migrate import open_store


class Database:
    """Where runs and human tasks are kept.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        find_key: Finds the key that receipts of decisions are signed with; without one there are none.
        clock: Where the time comes from.
    """

    def __init__(self, url: str, find_key: FindKey = no_key, clock: Clock | None = None) -> None:
        self.url = url
        self._find_key = find_key
        self._clock = clock or SystemClock()
        self._store: Store | None = None
        self._guard = threading.Lock()

    @property
    def store(self) -> Store:
        """The open database, brought up to date."""
        with self._guard:
            if self._store is None:
                self._store = open_store(self.url, self._clock, self._find_key)
            return self._store

    def close(self) -> None:
        """Close it, if anybody opened it; it opens again for whoever needs it next."""
        with self._guard:
            if self._store is not None:
                self._store.close()
            self._store = None
