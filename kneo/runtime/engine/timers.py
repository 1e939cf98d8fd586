"""Timers: deadlines of human tasks and runs, the sealing of the audit log, and retention."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kneo.clock import monotonic
from kneo.errors import Transient
from kneo.records.run import RunError, RunStatus
from kneo.store import audit, grants, runs, task_feed
from kneo.store.due import Due, find_due
from kneo.store.engine import Store
from kneo.store.locks import Lock
from kneo.tasks.lifecycle import cancel_tasks, process_due

log = logging.getLogger("kneo.runtime")

INTERVAL_SECONDS = 1.0

IDLE_SECONDS = 2.0
"""The interval after a search that found nothing."""

TAKEOVER_SECONDS = 3.0
"""The interval at which other processes try to take over from one that ended."""

TIMERS_LOCK = "timers"

RETENTION_LOCK = "retention"

HOUR_SECONDS = 3600.0

TURN_SECONDS = 60.0
"""The longest turn of retention; it then pauses for as long."""


def end_overdue_runs(store: Store) -> int:
    """Time out runs whose deadline has passed and close their tasks."""
    with store.look() as tx:
        overdue = runs.list_overdue(tx)
    count = 0
    for run_id in overdue:
        with store.write() as tx:
            error = RunError(type="run_timed_out", message="The run did not end before its deadline.")
            allowed = [RunStatus.RUNNING, RunStatus.PAUSED]
            if not runs.end(tx, run_id, RunStatus.TIMED_OUT, error, allowed=allowed):
                continue
            cancel_tasks(tx, run_id, reason="run_timed_out", actor="policy:timeout")
            audit.record(tx, "run.timed_out", actor=None, run_id=run_id, metadata={"error_type": error.type})
            count += 1
    return count


def end_expired_grants(store: Store) -> None:
    """End the standing grants whose time is over."""
    with store.read() as tx:
        if not grants.has_expired(tx):
            return
    with store.write() as tx:
        grants.end_expired(tx)


Duty = Callable[[Store], object]

# Readers of the inbox feed number its events at once; the last duty keeps the unnumbered ones few without readers.
DUTIES: Mapping[Due, Duty] = {
    Due.TASKS: process_due,
    Due.RUNS: end_overdue_runs,
    Due.GRANTS: end_expired_grants,
    Due.AUDIT: audit.seal,
    Due.FEED: task_feed.number,
}


def tick(store: Store) -> None:
    """Process everything that is due."""
    for duty in DUTIES.values():
        duty(store)


def process_found(store: Store) -> bool:
    """Process what is due, after one statement that finds what it is; return whether anything was."""
    found = find_due(store)
    for kind in found:
        _try(DUTIES[kind], store)
    return bool(found)


def run_timers(
    store: Store,
    stopping: threading.Event,
    beat: Callable[[], None] = lambda: None,
    duties: Sequence[Duty] = (process_found,),
) -> None:
    """Process what is due until stopped; of all processes that share a database, one at a time does.

    The next search is a second after one that found something, else two.

    A duty that fails is tried again a second later, and keeps no other from its work.

    Args:
        store: The database.
        stopping: Ends the loop.
        beat: Called at each turn.
        duties: What is processed at each turn; each returns whether there was anything.
    """
    while not stopping.is_set():
        beat()
        try:
            with store.exclusive(TIMERS_LOCK) as lock:
                while lock.held() and not stopping.is_set():
                    started = monotonic()
                    beat()
                    found = [_try(duty, store) for duty in duties]
                    pause = INTERVAL_SECONDS if any(found) else IDLE_SECONDS
                    stopping.wait(max(0.0, pause - (monotonic() - started)))
        except Transient as error:
            log.warning("timers could not reach the database: %s", error)
        stopping.wait(TAKEOVER_SECONDS)


def _try(duty: Duty, store: Store) -> bool:
    try:
        return bool(duty(store))
    except Transient:
        raise
    except Exception:
        log.exception("timers failed; they will be retried")
        return True


class RetentionJob(Protocol):
    """Deletes expired data in small steps, while ``go_on`` returns true."""

    def __call__(self, go_on: Callable[[], bool]) -> object: ...


def run_retention(store: Store, stopping: threading.Event, prune: RetentionJob) -> None:
    """Delete expired data every hour until stopped; of all processes one at a time does.

    A turn takes a minute at most; an incomplete one continues a minute later. Retention has a thread and a lock of its own:
    deadlines never wait for it.
    """
    while not stopping.is_set():
        pause = TURN_SECONDS
        try:
            with store.exclusive(RETENTION_LOCK) as lock:
                if lock:
                    pause = _turn(stopping, lock, prune)
        except Transient as error:
            log.warning("retention could not reach the database: %s", error)
        except Exception:
            log.exception("retention failed; it will be retried")
        stopping.wait(pause)


def _turn(stopping: threading.Event, lock: Lock, prune: RetentionJob) -> float:
    """Delete for one turn; return the pause after it."""
    deadline = monotonic() + TURN_SECONDS
    cut_short = False

    def go_on() -> bool:
        nonlocal cut_short
        cut_short = stopping.is_set() or monotonic() >= deadline or not lock.held()
        return not cut_short

    prune(go_on)
    return TURN_SECONDS if cut_short else HOUR_SECONDS
