"""What happens because time passes: deadlines of human tasks and runs, and the sealing of the audit log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from kneo.clock import monotonic
from kneo.errors import Transient
from kneo.state.run import RunError, RunStatus
from kneo.store import audit, runs
from kneo.store.engine import Store
from kneo.tasks.closing import cancel_tasks
from kneo.tasks.sweep import expire_due

log = logging.getLogger("kneo.runtime")

INTERVAL_SECONDS = 1.0

TIMERS_LOCK = "timers"

HOUR_SECONDS = 3600.0


def tick(store: Store) -> int:
    """Do everything that is due now; return how many things were."""
    return expire_due(store) + end_overdue_runs(store) + audit.seal(store)


def end_overdue_runs(store: Store) -> int:
    """Time out runs whose deadline has passed and close what they asked."""
    with store.read() as tx:
        overdue = runs.overdue(tx)
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


def run_timers(store: Store, stopping: threading.Event, hourly: Callable[[], object] | None = None) -> None:
    """Tick every second until told to stop; of all processes that share a database, one at a time does.

    ``hourly`` is what need not be on time: deleting what has been kept long enough.
    """
    next_hour = monotonic()
    while not stopping.is_set():
        try:
            with store.exclusive(TIMERS_LOCK) as held:
                while held and not stopping.is_set():
                    started = monotonic()
                    tick(store)
                    if hourly is not None and started >= next_hour:
                        next_hour = started + HOUR_SECONDS
                        hourly()
                    stopping.wait(max(0.0, INTERVAL_SECONDS - (monotonic() - started)))
        except Transient as error:
            log.warning("timers could not reach the database: %s", error)
        stopping.wait(INTERVAL_SECONDS)
