"""The stream of the inbox: every event of every task, once, in an order that reconnecting does not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from kneo.api.task_views import event
from kneo.service.change_feed import News
from kneo.service.events import Event, Events
from kneo.store import task_feed
from kneo.store.engine import Tx
from kneo.store.task_feed import Cursor


@dataclass(frozen=True)
class TaskHappening:
    """The moment when there is an event after a position."""

    after: int
    notice: None = None

    def heed(self, news: object) -> None:  # noqa: ARG002 - nothing is told without a name
        return None

    @classmethod
    def look(cls, tx: Tx, feeds: Sequence[TaskHappening]) -> Sequence[int | None]:
        last, more = task_feed.last_position(tx), task_feed.has_unnumbered(tx)
        return [last if more or last > feed.after else None for feed in feeds]


async def task_events(news: News, cursor: Cursor, *, heartbeat: float) -> Events:
    """Send the events of tasks after a place, each once, for as long as the reader stays.

    The first thing sent is the id of the place itself, so that a reader who is cut off before the first event continues
    from here.
    """
    yield Event(name="", data={}, id=cursor.event_id)
    after = cursor.position
    while not news.stopping:
        heard = await news.hear(TaskHappening(after), heartbeat)
        if heard is None:
            yield None
        while found := await run_in_threadpool(task_feed.events_after, news.store, after):
            for position, item in found:
                yield Event(name=f"human.{item.type}", id=item.id, data=event(item))
                after = position
