"""What there is to hear about a run: that it waits or has ended, and what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool

from kneo.api.context import Waiting
from kneo.api.run_views import TraceEventView
from kneo.api.status_words import say
from kneo.records.run import Run, RunStatus, TraceEvent
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.wait import Settled, Settling, as_it_is, find_run
from kneo.service.change_feed import News
from kneo.service.events import Event, Events
from kneo.store import history, idempotency, runs
from kneo.store.engine import Store, Tx
from kneo.store.runs import Progress
from kneo.tasks.inbox import find

OPEN = frozenset({RunStatus.RUNNING, RunStatus.PAUSED})

SYNC_SECONDS = 120.0
"""How long a request waits for its run unless it says; then it answers that the run goes on."""

EVENTS_AT_ONCE = 100
"""Events read at a time, so that a reader far behind does not make us hold all of them."""


async def settled_after(news: News, waiting: Waiting[object], mark: int) -> Settled:
    """Wait for the run that an operation works on.

    Args:
        news: Where requests wait for rows to change.
        waiting: The run, and how long to wait.
        mark: A mark of ``news`` from before the operation was called.
    """
    if waiting.seconds <= 0:
        return waiting.settled
    # An earlier execution of the request may have notified before the mark.
    since = mark if waiting.notified and idempotency.made() is None else None
    return await _settled_after(news, waiting.settling, waiting.seconds, since)


async def begun(news: News, begin: Callable[[], Run], seconds: float) -> Settled:
    """Begin a run, or begin it again, then wait until it waits for people or has ended, at most this long."""
    made = idempotency.made()
    mark = news.mark() if made is None else None
    run = await run_in_threadpool(begin if made is None else partial(find_run, news.store, made))
    if seconds <= 0:
        return Settled(run)
    return await _settled_after(news, Settling(run.id, epoch=run.epoch), seconds, mark)


async def answered(news: News, answer: Callable[[], HumanTask]) -> tuple[HumanTask, Settled]:
    """Answer a task, then wait until its run waits for people again or has ended."""
    mark = news.mark()
    task = await taken(news, answer)
    # A vote that does not decide wakes nobody, so nobody will tell.
    since = mark if task.status not in UNRESOLVED and idempotency.made() is None else None
    return task, await _settled_after(news, Settling(task.run_id, answered=task.id), SYNC_SECONDS, since)


async def taken(news: News, answer: Callable[[], HumanTask]) -> HumanTask:
    """Answer a task; where an earlier request with the same key has done so, read that task."""
    made = idempotency.made()
    return await run_in_threadpool(answer if made is None else partial(_task, news.store, made))


def _task(store: Store, task_id: str) -> HumanTask:
    with store.read() as tx:
        return find(tx, task_id)


async def _settled_after(news: News, settling: Settling, seconds: float, since: int | None) -> Settled:
    heard = await news.hear(settling, seconds, since)
    return heard if heard is not None else await run_in_threadpool(as_it_is, news.store, settling.run_id)


@dataclass(frozen=True)
class Happening:
    """The moment when more has happened in a run than is known: another event, another status."""

    run_id: str
    known: Progress | None
    notice: None = None

    def heed(self, news: object) -> None:  # noqa: ARG002 - nothing is told without a name
        return None

    @classmethod
    def look(cls, tx: Tx, feeds: Sequence[Happening]) -> Sequence[Progress | None]:
        standing = runs.progress(tx, [feed.run_id for feed in feeds])
        return [now if (now := standing.get(feed.run_id)) != feed.known else None for feed in feeds]


async def run_events(news: News, run_id: str, after: int, *, heartbeat: float, published: bool) -> Events:
    """Tell what happens in a run, from after the event with a number until it ends.

    Each of its trace events has the name of its type and its number as id; ``status`` says that it pauses or goes on,
    ``end`` that it has ended.
    """
    known: Progress | None = None
    told: RunStatus | None = None
    while not news.stopping:
        now = await news.hear(Happening(run_id, known), heartbeat)
        if now is None:
            yield None
            continue
        known = now
        while events := await run_in_threadpool(_after, news, run_id, after):
            for event in events:
                yield Event(name=event.type, id=str(event.sequence), data=vars(TraceEventView.of(event)))
            after = events[-1].sequence
            if len(events) < EVENTS_AT_ONCE:
                break
        if now.status is not told:
            told = now.status
            ended = now.status not in OPEN
            data = {"run_id": run_id, "status": say(now.status, published=published)}
            yield Event(name="end" if ended else "status", data=data)
            if ended:
                return


def _after(news: News, run_id: str, after: int) -> Sequence[TraceEvent]:
    with news.store.read() as tx:
        return history.list_trace(tx, run_id, after=after, limit=EVENTS_AT_ONCE)
