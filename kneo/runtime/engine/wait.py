"""Waiting for a run to pause or end, from a process that may not be the one that drives it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kneo.clock import monotonic
from kneo.errors import NotFound
from kneo.records.run import Run, RunStatus
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.store import history, runs, tasks
from kneo.store.engine import Store, Tx

LOOK_SECONDS = 0.05
"""When to look first whether somebody in another process is done; a driver in this one says so by itself."""

MOST_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Settled:
    """A run that waits for people or has ended, and what it asks, the oldest question first.

    This is what ``Store.notices`` tells under the run's id by whoever let it go; or nothing, where they do not know it all.
    """

    run: Run
    tasks: Sequence[HumanTask] = ()

    @property
    def task(self) -> HumanTask | None:
        return next(iter(self.tasks), None)


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
            settled = now is not None and now.status is not RunStatus.RUNNING
            found.append(_read(tx, feed.run_id) if settled else None)
        return found


def _read(tx: Tx, run_id: str) -> Settled | None:
    run = runs.get(tx, run_id)
    return Settled(run, open_tasks(tx, run)) if run is not None else None


def open_tasks(tx: Tx, run: Run) -> Sequence[HumanTask]:
    """Find what a paused run asks."""
    return tasks.of_run(tx, run.id, UNRESOLVED) if run.status is RunStatus.PAUSED else ()


def find_run(store: Store, run_id: str) -> Run:
    """Read a run.

    Raises:
        NotFound: there is none.
    """
    with store.read() as tx:
        return _find(tx, run_id)


def _find(tx: Tx, run_id: str) -> Run:
    run = runs.get(tx, run_id)
    if run is None:
        msg = f"There is no run {run_id[:80]}."
        raise NotFound(msg, run_id=run_id[:80])
    return replace(run, visited_steps=history.visited(tx, run_id)) if run.status is RunStatus.RUNNING else run


def as_it_is(store: Store, run_id: str) -> Settled:
    """Read a run and what it asks, whether it has settled or not.

    Raises:
        NotFound: there is none.
    """
    with store.read() as tx:
        run = _find(tx, run_id)
        return Settled(run, open_tasks(tx, run))


def wait_until_settled(store: Store, settling: Settling, timeout_seconds: float, since: int | None = None) -> Settled:
    """Wait until a run waits for people or has ended, at most this long; say how it then is.

    Args:
        store: The database.
        settling: What to wait for.
        timeout_seconds: How long.
        since: A mark of ``Store.notices`` from before it could happen. Without one the database is asked first.

    Raises:
        NotFound: there is no such run.
    """
    deadline = monotonic() + timeout_seconds
    pause = LOOK_SECONDS
    heard: list[Settled] = []
    woken = threading.Event()

    def hear(news: object) -> None:
        found = settling.heed(news)
        if found is not None:
            heard.append(found)
        woken.set()

    with store.notices.calling(settling.run_id, hear):
        told = store.notices.since(settling.run_id, since) if since is not None else None
        for news in told or ():
            hear(news)
        look = told is None or woken.is_set()
        while not heard and (left := deadline - monotonic()) > 0:
            found = _look(store, settling) if look else None
            if found is not None:
                return found
            woken.wait(min(pause, left))
            woken.clear()
            look, pause = True, min(pause * 1.5, MOST_LOOK_SECONDS)
    return heard[0] if heard else as_it_is(store, settling.run_id)


def _look(store: Store, settling: Settling) -> Settled | None:
    with store.read() as tx:
        return settling.look(tx, [settling])[0]
