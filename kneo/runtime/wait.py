"""Waiting for a run to pause or end, from a process that may not be the one that drives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kneo.clock import monotonic
from kneo.errors import NotFound
from kneo.state.run import Run, RunStatus
from kneo.state.task import HumanTask
from kneo.store import history, runs
from kneo.store.engine import Store

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


def find_run(store: Store, run_id: str) -> Run:
    """Read a run.

    Raises:
        NotFound: there is none.
    """
    with store.read() as tx:
        run = runs.get(tx, run_id)
        if run is not None and run.status is RunStatus.RUNNING:
            run = replace(run, visited_steps=history.visited(tx, run_id))
    if run is None:
        msg = f"There is no run {run_id[:80]}."
        raise NotFound(msg, hint="kneo runs list shows the latest.")
    return run


def wait_until_settled(store: Store, run_id: str, timeout_seconds: float) -> Run:
    """Wait until a run waits for people or has ended, at most this long; return it as it then is."""
    deadline = monotonic() + timeout_seconds
    pause = LOOK_SECONDS
    with store.notices.listening(run_id) as news:
        while (left := deadline - monotonic()) > 0 and _is_running(store, run_id):
            news.wait(min(pause, left))
            news.clear()
            pause = min(pause * 1.5, MOST_LOOK_SECONDS)
    return find_run(store, run_id)


def _is_running(store: Store, run_id: str) -> bool:
    with store.read() as tx:
        standing = runs.standing(tx, run_id)
    return standing is not None and standing.status is RunStatus.RUNNING
