"""Readers of deltas in other processes: a row per run says until when somebody reads."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from concurrent.futures import Future
from datetime import timedelta

from sqlalchemy import delete, select

from kneo.clock import isoformat, monotonic
from kneo.errors import KneoError
from kneo.store.engine import Store, Tx, upsert
from kneo.store.tables import delta_readers

READER_SECONDS = 60
"""The time after which a reader who does not announce itself again counts as gone."""

STALE_SECONDS = 1.0
"""The age at which the known readers are read again."""


def announce_reader(tx: Tx, run_id: str) -> None:
    """Announce a reader of a run to all processes, and forget those that are gone."""
    tx.connection.execute(delete(delta_readers).where(delta_readers.c.until < tx.at))
    upsert(tx, delta_readers, {"run_id": run_id}, until=isoformat(tx.now + timedelta(seconds=READER_SECONDS)))


def list_read_runs(tx: Tx) -> frozenset[str]:
    """List the runs that are read."""
    rows = tx.connection.execute(select(delta_readers.c.run_id).where(delta_readers.c.until >= tx.at))
    return frozenset(rows.scalars())


class ReaderCache:
    """The runs that are read in any process, as they were a moment ago."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: Collection[str] = frozenset()
        self._read_at = float("-inf")
        self._reading: Future[frozenset[str]] | None = None

    def is_read(self, run_id: str) -> bool:
        """Return whether somebody reads the deltas of a run, without waiting for the database."""
        hub = self._store.deltas
        if hub.spans_processes and monotonic() - self._read_at > STALE_SECONDS:
            self.refresh()
        return hub.has_listener(run_id) or run_id in self._runs

    def refresh(self) -> Future[frozenset[str]]:
        """Begin to read the readers, unless that is under way."""
        if self._reading is None or self._reading.done():
            self._read_at = monotonic()
            self._reading = self._store.submit(list_read_runs, durable=False)
            self._reading.add_done_callback(self._update)
        return self._reading

    def _update(self, read: Future[frozenset[str]]) -> None:
        with contextlib.suppress(KneoError):
            self._runs = read.result()
