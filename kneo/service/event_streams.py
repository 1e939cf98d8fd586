"""Streams of events: of one run until it ends, and of all tasks in an order that reconnecting does not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from kneo.api.run_views import TraceEventView
from kneo.api.status_words import say
from kneo.api.task_views import TaskEventView
from kneo.records.run import RunStatus, TraceEvent
from kneo.service.events import Event, Events
from kneo.service.waiting import next_change
from kneo.store import history, runs, task_feed
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store, Tx
from kneo.store.runs import RunProgress
from kneo.store.task_feed import Cursor

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


async def run_events(feed: ChangeFeed, run_id: str, after: int, *, heartbeat: float, published: bool) -> Events:
    """Stream the trace events of a run after a sequence number, until the run ends.

    A trace event has the name of its type and its sequence number as id; ``status`` reports that the run pauses or continues,
    ``end`` that it has ended.
    """
    known: RunProgress | None = None
    status: RunStatus | None = None
    while not feed.stopping:
        progress = await next_change(feed, RunProgressed(run_id, known), heartbeat)
        if progress is None:
            yield None
            continue
        known = progress
        while events := await run_in_threadpool(_trace_after, feed.store, run_id, after):
            for item in events:
                yield Event(name=item.type, id=str(item.sequence), data=vars(TraceEventView.of(item)))
            after = events[-1].sequence
            if len(events) < EVENTS_PER_READ:
                break
        if progress.status is not status:
            status = progress.status
            ended = status not in {RunStatus.RUNNING, RunStatus.PAUSED}
            yield Event(
                name="end" if ended else "status", data={"run_id": run_id, "status": say(status, published=published)}
            )
            if ended:
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
        while found := await run_in_threadpool(task_feed.events_after, feed.store, after):
            for position, item in found:
                yield Event(name=f"human.{item.type}", id=item.id, data=vars(TaskEventView.of(item)))
                after = position
