"""Streams of events: of one run until it ends, with its deltas, and of all tasks in an order that reconnecting does not change."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool

from kneo.api.run_views import TraceEventView, say
from kneo.api.task_views import TaskEventView
from kneo.records.conversation import ModelDelta
from kneo.records.run import RunStatus, TraceEvent
from kneo.service.context import next_change
from kneo.service.events import Event, Events
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


EVENTS_PER_READ = 100
"""Trace events of one read, which bounds the memory for a reader far behind."""


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


async def run_events(
    feed: ChangeFeed, run_id: str, after: int, *, heartbeat: float, published: bool, deltas: DeltaQueue | None = None
) -> Events:
    """Stream the trace events of a run after a sequence number, until the run ends.

    A trace event has the name of its type and its sequence number as id; ``status`` reports that the run pauses or continues,
    ``end`` that it has ended, ``model_delta`` a piece of a reply where there is a queue for ``deltas``.
    """
    with contextlib.ExitStack() as reading:
        if deltas is not None:
            reading.enter_context(feed.store.deltas.listen(run_id, deltas.put))
        async for event in _run_events(feed, run_id, after, heartbeat, deltas, published=published):
            yield event


async def _run_events(
    feed: ChangeFeed, run_id: str, after: int, heartbeat: float, deltas: DeltaQueue | None, *, published: bool
) -> Events:
    known: RunProgress | None = None
    status: RunStatus | None = None
    while not feed.stopping:
        progress = None
        async for progress in _next_progress(feed, RunProgressed(run_id, known), heartbeat, deltas):
            if isinstance(progress, ModelDelta):
                yield Event(name="model_delta", data=vars(progress))
        if not isinstance(progress, RunProgress):
            yield None
            continue
        known = progress
        async for event in trace_events(feed.store, run_id, after):
            yield event
            after = int(event.id or after)
        if progress.status is not status:
            status = progress.status
            ended = status not in {RunStatus.RUNNING, RunStatus.PAUSED}
            yield Event(
                name="end" if ended else "status", data={"run_id": run_id, "status": say(status, published=published)}
            )
            if ended:
                return


async def _next_progress(
    feed: ChangeFeed, subscription: RunProgressed, heartbeat: float, deltas: DeltaQueue | None
) -> AsyncIterator[RunProgress | ModelDelta | None]:
    """Yield the progress of a run, or ``None`` after the heartbeat; before it the deltas that arrive meanwhile."""
    if deltas is None:
        progress: RunProgress | None = await next_change(feed, subscription, heartbeat)
        yield progress
        return
    if feed.store.deltas.spans_processes and deltas.is_announcement_due():
        await run_in_threadpool(feed.store.transact, partial(announce_reader, run_id=subscription.run_id))
    with feed.subscribe(subscription) as future:
        change = asyncio.wrap_future(future)
        change.add_done_callback(lambda _change: deltas.wake())
        while True:
            in_time = await deltas.wait(heartbeat)
            for item in deltas.take():
                yield item
            if change.done() or not in_time:
                yield change.result() if change.done() else None
                return


async def trace_events(store: Store, run_id: str, after: int) -> AsyncIterator[Event]:
    """Yield the trace events of a run that exist now after a sequence number; the id of each is its number."""
    while events := await run_in_threadpool(_trace_after, store, run_id, after):
        for item in events:
            yield Event(name=item.type, id=str(item.sequence), data=vars(TraceEventView.of(item)))
        after = events[-1].sequence
        if len(events) < EVENTS_PER_READ:
            return


def _trace_after(store: Store, run_id: str, after: int) -> Sequence[TraceEvent]:
    with store.read() as tx:
        return history.list_trace(tx, run_id, after=after, limit=EVENTS_PER_READ)


async def task_events(feed: ChangeFeed, cursor: Cursor, *, heartbeat: float) -> Events:
    """Stream the events of all tasks after a cursor, each once, until the reader leaves.

    The id of the cursor comes first, so that a reader that is disconnected before the first event continues from there.
    """
    yield Event(name="", data={}, id=cursor.event_id)
    after = cursor.position
    while not feed.stopping:
        if await next_change(feed, TaskEventsAdded(after), heartbeat) is None:
            yield None
        while events := await run_in_threadpool(task_feed.events_after, feed.store, after):
            for position, item in events:
                yield Event(name=f"human.{item.type}", id=item.id, data=vars(TaskEventView.of(item)))
                after = position
