"""Waiting for rows to change, for any number of waiters at once; and the readers of deltas in other processes.

A commit of this process that carries the whole change needs no read. Otherwise one read serves all waiters: after a commit, and
every tenth of a second for commits of other processes. A waiter holds neither a thread nor a connection. Readers of deltas have a
row per run that says until when it is read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from sqlalchemy import delete, select

from kneo.clock import isoformat, monotonic
from kneo.errors import KneoError
from kneo.store.engine import Store, Tx, upsert
from kneo.store.tables import delta_readers
from kneo.store.writer import ANY_COMMIT

log = logging.getLogger("kneo.store")

POLL_SECONDS = 0.1
"""Interval of reads for changes that other processes committed."""

RETRY_SECONDS = 1.0
"""Pause after a read that failed."""

T = TypeVar("T")


class Subscription(ABC, Generic[T]):
    """A change to wait for. Subscriptions of one class are read together."""

    @property
    def topic(self) -> str:
        """The topic under which a commit notifies of the change."""
        return ANY_COMMIT

    def accept(self, change: object) -> T | None:  # noqa: ARG002 - for subclasses with a topic
        """Return the change that a notification carries; ``None`` where the database has to be read."""
        return None

    @classmethod
    def find_changed(cls, tx: Tx, subscriptions: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG003 - for subclasses that have a cheaper answer
        """Return the subscriptions for which ``read`` may find a change, by one statement at most."""
        return subscriptions

    @classmethod
    @abstractmethod
    def read(cls, tx: Tx, subscriptions: Sequence[Any]) -> Sequence[T | None]:
        """Return the change for each subscription of this class; ``None`` where there is none yet."""


@dataclass(eq=False)
class _Waiter:
    subscription: Subscription[Any]
    future: Future[Any] = field(default_factory=Future)
    due: bool = False
    """Whether the next read includes this waiter."""

    def resolve(self, change: object) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(change)


class ChangeFeed:
    """Resolves a future for each waiter, from one thread that reads for all of them.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stopping = False
        self._waiters: set[_Waiter] = set()
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None
        self._poll_at = monotonic() + POLL_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for(self, subscription: Subscription[T], seconds: float, since: int | None = None) -> T | None:
        """Wait for a change; return ``None`` after this many seconds, or once the feed is stopped.

        Args:
            subscription: The change.
            seconds: The longest time to wait.
            since: A mark of ``Store.notifier`` from before the change was possible. Without it the database is read first.
        """
        with self.subscribe(subscription, since) as future:
            try:
                return future.result(seconds)
            except TimeoutError:
                return None

    @contextlib.contextmanager
    def subscribe(self, subscription: Subscription[T], since: int | None = None) -> Iterator[Future[T | None]]:
        """Return the future of a change, until the block ends; see ``wait_for``."""
        waiter = _Waiter(subscription)
        notifier, topic = self.store.notifier, subscription.topic
        with notifier.listen(topic, partial(self._accept, waiter)):
            missed = notifier.since(topic, since) if since is not None and topic != ANY_COMMIT else None
            if missed is None:
                waiter.due = True
            for change in missed or ():
                self._accept(waiter, change)
            self._add(waiter)
            try:
                yield cast("Future[T | None]", waiter.future)
            finally:
                with self._changed:
                    self._waiters.discard(waiter)

    def stop(self) -> None:
        """Resolve the futures of all waiters, now and from now on, with ``None``."""
        with self._changed:
            self.stopping = True
            waiters = tuple(self._waiters)
            self._changed.notify()
        for waiter in waiters:
            waiter.resolve(None)
        if self._reader is not None:
            self._reader.join(RETRY_SECONDS)

    def _accept(self, waiter: _Waiter, notification: object) -> None:
        change = waiter.subscription.accept(notification)
        if change is not None:
            waiter.resolve(change)
        elif not waiter.due:
            with self._changed:
                waiter.due = True
                self._changed.notify()

    def _add(self, waiter: _Waiter) -> None:
        if waiter.future.done():
            return
        with self._changed:
            if self.stopping:
                waiter.resolve(None)
                return
            self._waiters.add(waiter)
            if self._reader is None:
                self._reader = threading.Thread(target=self._read_changes, name="change-feed", daemon=True)
                self._reader.start()
            self._changed.notify()

    def _read_changes(self) -> None:
        while waiters := self._next_due():
            try:
                self._read(waiters)
            except Exception as error:
                if not isinstance(error, KneoError):
                    log.exception("changes could not be read, and are read again")
                with self._changed:
                    self._changed.wait_for(lambda: self.stopping, RETRY_SECONDS)
                    self._poll_at = monotonic()

    def _next_due(self) -> Sequence[_Waiter]:
        """Wait for waiters to read for: those that are due, and all of them at the next poll. Return none once the feed is stopped."""
        with self._changed:
            while not self.stopping:
                waiters = [waiter for waiter in self._waiters if not waiter.future.done()]
                if not waiters:
                    self._changed.wait()
                    self._poll_at = monotonic() + POLL_SECONDS
                    continue
                left = self._poll_at - monotonic()
                # By the clock, however many notifications come: a busy process must see other processes' commits too.
                if left <= 0:
                    self._poll_at = monotonic() + POLL_SECONDS
                due = [waiter for waiter in waiters if waiter.due or left <= 0]
                if due:
                    for waiter in due:
                        waiter.due = False
                    return due
                self._changed.wait(left)
        return ()

    def _read(self, waiters: Sequence[_Waiter]) -> None:
        by_kind = sorted(waiters, key=lambda waiter: id(type(waiter.subscription)))
        kinds = [(kind, tuple(same)) for kind, same in groupby(by_kind, key=lambda waiter: type(waiter.subscription))]
        changed = []
        for kind, same in kinds:
            with self.store.look() as tx:
                found = set(map(id, kind.find_changed(tx, [item.subscription for item in same])))
            if found:
                changed.append((kind, tuple(item for item in same if id(item.subscription) in found)))
        if not changed:
            return
        with self.store.read() as tx:
            for kind, same in changed:
                for waiter, change in zip(same, kind.read(tx, [item.subscription for item in same]), strict=True):
                    if change is not None:
                        waiter.resolve(change)


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
        """Return whether a client reads the deltas of a run, without waiting for the database."""
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
