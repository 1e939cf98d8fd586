"""Streams of events: of one run until it ends, with its deltas, and of all tasks in an order that reconnecting does not change."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from starlette.concurrency import run_in_threadpool

from kneo import registry
from kneo.api.operation import Principal
from kneo.api.run_views import TraceEventView
from kneo.api.task_views import TaskEventView
from kneo.records.conversation import ModelDelta
from kneo.records.run import RunStatus
from kneo.service.context import next_change
from kneo.service.events import Event, Events
from kneo.service.published import published_word
from kneo.service.shared_reads import EVENTS_PER_READ, EventBuffer, Positioned, SharedReads
from kneo.store import history, releases, runs, task_feed, tasks
from kneo.store.change_feed import ChangeFeed, Subscription, announce_reader
from kneo.store.engine import Store, Tx
from kneo.store.prepared import Row
from kneo.store.runs import RunProgress
from kneo.store.task_feed import Cursor

Stamps: TypeAlias = tuple[Row, ...]
"""The state of the files of all environments."""

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


@dataclass(frozen=True)
class AccessChanged(Subscription[Stamps]):
    """The file of an environment in force has changed, and with it perhaps who may read the environment."""

    known: Stamps | None

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[AccessChanged]) -> Sequence[Stamps | None]:
        now = releases.environment_stamps(tx)
        return [now if now != item.known else None for item in subscriptions]


class ReaderAccess:
    """The environments that the reader of a stream may read, followed while the stream is open.

    Args:
        changes: The change feed of the database.
        principal: The reader.
        scopes: The scopes of the stream.
    """

    def __init__(self, changes: ChangeFeed, principal: Principal, scopes: Sequence[str]) -> None:
        self.reach: frozenset[str] | None = None
        self._changes = changes
        self._principal = principal
        self._scopes = scopes
        self._known: Stamps | None = None

    async def advance(self) -> bool:
        """Read the access after its next change, or at first; return false where the service stops."""
        found = await next_change(self._changes, AccessChanged(self._known))
        if found is not None:
            self._known = found
            self.reach = await run_in_threadpool(self._read)
        return found is not None

    def _read(self) -> frozenset[str] | None:
        with self._changes.store.read() as tx:
            return registry.find_reach(tx, self._principal, self._scopes)

    def sees(self, environment: str | None) -> bool:
        """Return whether the reader may read an environment."""
        return self.reach is None or environment in self.reach


class _Ended:
    """The end of a stream."""


async def while_readable(events: Events, access: ReaderAccess, environment: str | None = None) -> Events:
    """Yield the events of a stream; once the reader may not read the environment of a run any more, an ``end`` and no more.

    Args:
        events: The events.
        access: The access of the reader, which is followed meanwhile.
        environment: The environment of the run; ``None`` for a stream of all environments, which ``access`` filters.
    """

    async def take() -> Event | _Ended | None:
        return await anext(events, _Ended())

    following: asyncio.Task[Event | _Ended | None] | None = None
    changing = asyncio.create_task(access.advance())
    try:
        while True:
            following = following or asyncio.create_task(take())
            await asyncio.wait({following, changing}, return_when=asyncio.FIRST_COMPLETED)
            if changing.done() and changing.result():
                if environment is not None and not access.sees(environment):
                    yield Event(name="end", data={"error": "environment_not_found"})
                    return
                changing = asyncio.create_task(access.advance())
            if following.done():
                event = following.result()
                if isinstance(event, _Ended):
                    return
                following = None
                yield event
            elif changing.done() and not changing.result():
                await asyncio.wait({following})
    finally:
        tasks_left = [changing, *([following] if following is not None else [])]
        for task in tasks_left:
            task.cancel()
        await asyncio.gather(*tasks_left, return_exceptions=True)
        await events.aclose()


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
        with self._changes.store.read() as tx:
            environments = tasks.environments_of(tx, {item.task_id for _, item in events})
        return [
            Positioned(
                number,
                Event(name=f"human.{item.type}", id=item.id, data=vars(TaskEventView.of(item))),
                environments.get(item.task_id),
            )
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


async def task_events(reads: SharedReads, cursor: Cursor, access: ReaderAccess, *, heartbeat: float) -> Events:
    """Stream the events of the tasks that a reader may read after a cursor, each once, until the reader leaves.

    The id of the cursor comes first, so that a reader that is disconnected before the first event continues from there.
    """
    yield Event(name="", data={}, id=cursor.event_id)
    after = cursor.position
    with reads.follow("tasks", lambda: TaskFeed(reads.changes)) as feed:
        feed.join(after)
        while not reads.stopping:
            version = feed.version
            async for item in feed.events(after):
                if access.sees(item.environment):
                    yield item.event
                after = item.position
            if not await feed.wait(version, heartbeat):
                yield None
