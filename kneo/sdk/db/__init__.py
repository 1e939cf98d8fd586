"""Where runs are kept: a file, or a PostgreSQL database."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from pathlib import Path

from kneo.clock import Clock, SystemClock
from kneo.store.engine import Store
from kneo.store.migrate import open_store


class Database:
    """A database that is opened when it is first needed.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.
        clock: Where the time comes from.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.url = url
        self._clock = clock or SystemClock()
        self._store: Store | None = None
        self._guard = threading.Lock()

    @property
    def store(self) -> Store:
        """The open database, brought up to date."""
        with self._guard:
            if self._store is None:
                self._store = open_store(self.url, self._clock)
            return self._store

    def close(self) -> None:
        """Close it; it opens again when it is needed."""
        with self._guard:
            if self._store is not None:
                self._store.close()
            self._store = None


def scratch() -> Database:
    """Make a database that is gone when this process is."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-"))
    database = Database(f"sqlite:///{folder / 'runs.db'}")

    def forget() -> None:
        database.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(forget)
    return database
