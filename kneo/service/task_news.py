"""What there is to hear about the inbox: everything that happens to any task, as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from starlette.concurrency import run_in_threadpool

from kneo.api.task_views import event
from kneo.clock import first_id
from kneo.service.events import Event, Events
from kneo.service.news import News
from kneo.state.task import TaskEvent
from kneo.store import tasks
from kneo.store.engine import Store, Tx

EVENTS_AT_ONCE = 1_000

OVERLAP = timedelta(seconds=5)
"""How long an event may take from getting its id to being there to be read: one with an earlier id may come later."""


@dataclass(frozen=True)
class TaskHappening:
    """The moment when something has happened to any task after an event."""

    after: str
    notice: None = None

    def heed(self, news: object) -> None:  # noqa: ARG002 - nothing is told without a name
        return None

    @classmethod
    def look(cls, tx: Tx, feeds: Sequence[TaskHappening]) -> Sequence[str | None]:
        last = tasks.last_event(tx)
        return [last if last > feed.after else None for feed in feeds]


def latest(store: Store) -> str:
    """Return the id of the newest event."""
    with store.read() as tx:
        return tasks.last_event(tx)


async def task_events(news: News, after: str, *, heartbeat: float) -> Events:
    """Tell what happens to tasks after an event, for as long as anybody listens. Each event's id is its own."""
    told = {item.id for item in await run_in_threadpool(_recent, news.store, after) if item.id <= after}
    while not news.stopping:
        heard = await news.hear(TaskHappening(after), heartbeat)
        recent = await run_in_threadpool(_recent, news.store, after)
        new = [item for item in recent if item.id not in told]
        for item in new:
            yield Event(name=f"human.{item.type}", id=item.id, data=event(item))
            after = max(after, item.id)
        told = {item.id for item in recent}
        if heard is None and not new:
            yield None


def _recent(store: Store, after: str) -> Sequence[TaskEvent]:
    """Read what came after an event, and what was about to be written when it was."""
    overlap = first_id("tev", store.clock.now() - OVERLAP)
    with store.read() as tx:
        found = tasks.events_after(tx, min(after, overlap), EVENTS_AT_ONCE)
        # Where more happens than is read at once, getting on is worth more than looking back.
        return found if len(found) < EVENTS_AT_ONCE else tasks.events_after(tx, after, EVENTS_AT_ONCE)
