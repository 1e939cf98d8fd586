"""Streams of events: of one run until it ends, with its deltas, and of all tasks in an order that reconnecting does not change."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool

from kneo.api.run_views import TraceEventView
from kneo.api.task_views import TaskEventView
from kneo.records.conversation import ModelDelta
from kneo.records.run import RunStatus
from kneo.service.context import next_change
from kneo.service.events import Event, Events
from kneo.service.published import published_word
from kneo.service.shared_reads import EVENTS_PER_READ, EventBuffer, Positioned, SharedReads
from kneo.store import history, runs, task_feed
from kneo.store.change_feed import ChangeFeed, Subscription, announce_reader
from kneo.store.engine import Store, Tx
from kneo.store.runs import RunProgress
from kneo.store.task_feed import Cursor

MAX_DELTAS = 256
"""Deltas that wait for a slow reader; the oldest ones are dropped."""

ANNOUNCE_SECONDS = 20.0
"""The interval at which a reader announces itself to other processes."""


class DeltaQueue:
    """Made on the event loop that reads it; ``put`` may be called in any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._deltas: deque[ModelDelta] = deque(maxlen=MAX_DELTAS)
        self._changed = asyncio.Event()
        self._announce_at = self._loop.time()

    def put(self, delta: ModelDelta) -> None:
        """Add a delta, from any thread."""
        self._deltas.append(delta)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def wake(self) -> None:
        """End a wait."""
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a delta or for ``wake``; return false after this many seconds without."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def take(self) -> Sequence[ModelDelta]:
        """Remove and return the deltas that have arrived."""
        return [self._deltas.popleft() for _ in range(len(self._deltas))]

    def is_announcement_due(self) -> bool:
        """Return whether the reader has to announce itself, and take note that it does."""
        is_due = self._loop.time() >= self._announce_at
        if is_due:
            self._announce_at = self._loop.time() + ANNOUNCE_SECONDS
        return is_due


@dataclass(frozen=True)
class RunProgressed(Subscription[RunProgress]):
    """A run has another status, or more trace events, than the reader knows."""

    run_id: str
    known: RunProgress | None

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[RunProgressed]) -> Sequence[RunProgress | None]:
        progress = runs.progress(tx, [item.run_id for item in subscriptions])
        return [now if (now := progress.get(item.run_id)) != item.known else None for item in subscriptions]


@dataclass(frozen=True)
class TaskEventsAdded(Subscription[int]):
    """A task event exists after a position."""

    after: int

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[TaskEventsAdded]) -> Sequence[int | None]:
        last, more = task_feed.last_position(tx), task_feed.has_unnumbered(tx)
        return [last if more or last > item.after else None for item in subscriptions]


class RunFeed(EventBuffer):
    """The trace events and the progress of one run.

    Args:
        changes: The change feed of the database.
        run_id: The run.
    """

    def __init__(self, changes: ChangeFeed, run_id: str) -> None:
        super().__init__()
        self.progress: RunProgress | None = None
        """The progress of the run, whose events have all been read; ``None`` before the first read."""
        self._changes = changes
        self._run_id = run_id
        self._next: RunProgress | None = None

    async def _read(self) -> bool:
        if self._next is None:
            self._next = await next_change(self._changes, RunProgressed(self._run_id, self.progress))
        if self._next is None:
            return False
        if self._end >= self._next.trace_count or await self._extend(self._next.trace_count):
            self.progress, self._next = self._next, None
        return True

    def _page(self, position: int) -> Sequence[Positioned]:
        return _trace_page(self._changes.store, self._run_id, position)


class TaskFeed(EventBuffer):
    """The events of all tasks.

    Args:
        changes: The change feed of the database.
    """

    def __init__(self, changes: ChangeFeed) -> None:
        super().__init__()
        self._changes = changes

    async def _read(self) -> bool:
        if self._take_move():
            return True
        last = await next_change(self._changes, TaskEventsAdded(self._end))
        if last is None:
            return False
        await self._extend(last)
        return True

    def _page(self, position: int) -> Sequence[Positioned]:
        events = task_feed.events_after(self._changes.store, position, EVENTS_PER_READ)
        return [
            Positioned(number, Event(name=f"human.{item.type}", id=item.id, data=vars(TaskEventView.of(item))))
            for number, item in events
        ]


async def run_events(
    reads: SharedReads,
    run_id: str,
    after: int,
    *,
    since: int = 0,
    heartbeat: float,
    published: bool,
    deltas: DeltaQueue | None = None,
) -> Events:
    """Stream the trace events of a run after a sequence number, until the run ends.

    A trace event has the name of its type and its sequence number as id; ``status`` reports that the run pauses or continues,
    ``end`` that it has ended, ``model_delta`` a piece of a reply where there is a queue for ``deltas``. No status is reported that
    the run had before it had ``since`` trace events.
    """
    with contextlib.ExitStack() as reading:
        feed = reading.enter_context(reads.follow(("run", run_id), lambda: RunFeed(reads.changes, run_id)))
        feed.join(after)
        if deltas is not None:
            reading.enter_context(reads.changes.store.deltas.listen(run_id, deltas.put))
        status: RunStatus | None = None
        while not reads.stopping:
            version, progress = feed.version, feed.progress
            async for item in feed.events(after):
                yield item.event
                after = item.position
            if progress is not None and progress.status is not status and progress.trace_count >= since:
                status = progress.status
                ended = status not in {RunStatus.RUNNING, RunStatus.PAUSED}
                data = {"run_id": run_id, "status": published_word(status) if published else status.value}
                yield Event(name="end" if ended else "status", data=data)
                if ended:
                    return
            if deltas is None:
                if not await feed.wait(version, heartbeat):
                    yield None
                continue
            if reads.changes.store.deltas.spans_processes and deltas.is_announcement_due():
                await run_in_threadpool(reads.changes.store.transact, partial(announce_reader, run_id=run_id))
            async for event in _deltas_before(feed.after(version), heartbeat, deltas):
                yield event


async def _deltas_before(change: asyncio.Future[None], heartbeat: float, deltas: DeltaQueue) -> Events:
    """Yield the deltas that arrive before a change, or ``None`` after the heartbeat."""

    def wake(_change: asyncio.Future[None]) -> None:
        deltas.wake()

    change.add_done_callback(wake)
    try:
        while True:
            in_time = await deltas.wait(heartbeat)
            for item in deltas.take():
                yield Event(name="model_delta", data=vars(item))
            if change.done():
                change.result()
                return
            if not in_time:
                yield None
                return
    finally:
        change.remove_done_callback(wake)


async def trace_events(store: Store, run_id: str, after: int) -> AsyncIterator[Event]:
    """Yield the trace events of a run that exist now after a sequence number; the id of each is its number."""
    while page := await run_in_threadpool(_trace_page, store, run_id, after):
        for item in page:
            yield item.event
        after = page[-1].position
        if len(page) < EVENTS_PER_READ:
            return


def _trace_page(store: Store, run_id: str, after: int) -> Sequence[Positioned]:
    with store.read() as tx:
        events = history.list_trace(tx, run_id, after=after, limit=EVENTS_PER_READ)
    return [
        Positioned(item.sequence, Event(name=item.type, id=str(item.sequence), data=vars(TraceEventView.of(item))))
        for item in events
    ]


async def task_events(reads: SharedReads, cursor: Cursor, *, heartbeat: float) -> Events:
    """Stream the events of all tasks after a cursor, each once, until the reader leaves.

    The id of the cursor comes first, so that a reader that is disconnected before the first event continues from there.
    """
    yield Event(name="", data={}, id=cursor.event_id)
    after = cursor.position
    with reads.follow("tasks", lambda: TaskFeed(reads.changes)) as feed:
        feed.join(after)
        while not reads.stopping:
            version = feed.version
            async for item in feed.events(after):
                yield item.event
                after = item.position
            if not await feed.wait(version, heartbeat):
                yield None
