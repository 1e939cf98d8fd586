"""What there is to hear about a run: that it waits or has ended, and what happens in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from kneo.runtime.wait import find_run
from kneo.service import wire
from kneo.service.events import Event, Events
from kneo.service.news import News
from kneo.service.words import say
from kneo.state.run import Run, RunStatus, TraceEvent
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store import history, runs, tasks
from kneo.store.engine import Tx
from kneo.store.runs import Progress

UNSETTLED = frozenset({RunStatus.RUNNING})
OPEN = frozenset({RunStatus.RUNNING, RunStatus.PAUSED})

SYNC_SECONDS = 120.0
"""How long a request waits for its run unless it says; then it answers that the run goes on."""

EVENTS_AT_ONCE = 100
"""Events read at a time, so that a reader far behind does not make us hold all of them."""


@dataclass(frozen=True)
class Settled:
    """A run that waits for people or has ended, and what it asks."""

    run: Run
    task: HumanTask | None


@dataclass(frozen=True)
class Settling:
    """The moment when a run waits for people or has ended, which its driver tells."""

    run_id: str

    @property
    def notice(self) -> str:
        return self.run_id

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
    return Settled(run, open_task(tx, run)) if run is not None else None


def open_task(tx: Tx, run: Run) -> HumanTask | None:
    """Find what a paused run asks."""
    if run.status is not RunStatus.PAUSED:
        return None
    return next(iter(tasks.of_run(tx, run.id, UNRESOLVED)), None)


async def settled(news: News, run_id: str, seconds: float) -> Settled:
    """Wait until a run waits for people or has ended, at most this long; return it as it then is."""
    heard = await news.hear(Settling(run_id), seconds) if seconds > 0 else None
    if heard is not None:
        return heard

    def as_it_is() -> Settled:
        now = find_run(news.store, run_id)
        with news.store.read() as tx:
            return Settled(now, open_task(tx, now))

    return await run_in_threadpool(as_it_is)


@dataclass(frozen=True)
class Happening:
    """The moment when more has happened in a run than is known: another event, another status."""

    run_id: str
    known: Progress | None
    notice: None = None

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
