"""What there is to hear about a run: that it waits or has ended, and what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from kneo.runtime.wait import Settled, find_run
from kneo.service import wire
from kneo.service.events import Event, Events
from kneo.service.news import News
from kneo.service.words import say
from kneo.state.run import Run, RunStatus, TraceEvent
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store import history, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.runs import Progress

UNSETTLED = frozenset({RunStatus.RUNNING})
OPEN = frozenset({RunStatus.RUNNING, RunStatus.PAUSED})

SYNC_SECONDS = 120.0
"""How long a request waits for its run unless it says; then it answers that the run goes on."""

EVENTS_AT_ONCE = 100
"""Events read at a time, so that a reader far behind does not make us hold all of them."""


@dataclass(frozen=True)
class Settling:
    """The moment when a run waits for people or has ended, which whoever lets it go tells.

    Attributes:
        run_id: Which run.
        epoch: News of an earlier one is late: it is about what was before.
        answered: A question that was answered before; so is news of a run that still asks it.
    """

    run_id: str
    epoch: int = 0
    answered: str | None = None

    @property
    def notice(self) -> str:
        return self.run_id

    def heed(self, news: object) -> Settled | None:
        if not isinstance(news, Settled) or news.run.epoch < self.epoch:
            return None
        return news if all(task.id != self.answered for task in news.tasks) else None

    @classmethod
    def look(cls, tx: Tx, feeds: Sequence[Settling]) -> Sequence[Settled | None]:
        standing = runs.progress(tx, [feed.run_id for feed in feeds])
        found: list[Settled | None] = []
        for feed in feeds:
            now = standing.get(feed.run_id)
            found.append(_settled(tx, feed.run_id) if now is not None and now.status not in UNSETTLED else None)
        return found


def _settled(tx: Tx, run_id: str) -> Settled | None:
    run = runs.get(tx, run_id)
    return Settled(run, open_tasks(tx, run)) if run is not None else None


def open_tasks(tx: Tx, run: Run) -> Sequence[HumanTask]:
    """Find what a paused run asks."""
    return tasks.of_run(tx, run.id, UNRESOLVED) if run.status is RunStatus.PAUSED else ()


async def begun(news: News, begin: Callable[[], Run], seconds: float) -> Settled:
    """Begin a run, or begin it again, then wait until it waits for people or has ended, at most this long."""
    mark = news.mark()
    run = await run_in_threadpool(begin)
    if seconds <= 0:
        return Settled(run)
    return await _settled_after(news, Settling(run.id, epoch=run.epoch), seconds, mark)


async def answered(news: News, answer: Callable[[], HumanTask]) -> tuple[HumanTask, Settled]:
    """Answer a task, then wait until its run waits for people again or has ended."""
    mark = news.mark()
    task = await run_in_threadpool(answer)
    # A vote that does not decide wakes nobody, so nobody will tell.
    since = mark if task.status not in UNRESOLVED else None
    return task, await _settled_after(news, Settling(task.run_id, answered=task.id), SYNC_SECONDS, since)


async def _settled_after(news: News, settling: Settling, seconds: float, since: int | None) -> Settled:
    heard = await news.hear(settling, seconds, since)
    return heard if heard is not None else await run_in_threadpool(_as_it_is, news.store, settling.run_id)


def _as_it_is(store: Store, run_id: str) -> Settled:
    run = find_run(store, run_id)
    with store.read() as tx:
        return Settled(run, open_tasks(tx, run))


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
                yield Event(name=event.type, id=str(event.sequence), data=wire.trace_event(event))
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
