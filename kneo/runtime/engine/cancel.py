"""Cancellation of a run."""

from __future__ import annotations

from kneo.errors import NotFound
from kneo.records.run import Run, RunError, RunStatus
from kneo.store import audit, idempotency, runs
from kneo.store.engine import Store
from kneo.tasks.lifecycle import cancel_tasks


def cancel_run(store: Store, run_id: str, *, actor: str) -> Run:
    """Cancel a run and withdraw its tasks; a run that has ended stays as it is.

    A running step loses its lease: its result is discarded.

    Raises:
        NotFound: there is no such run.
    """
    with store.write() as tx:
        run = runs.get(tx, run_id)
        if run is None:
            msg = f"There is no run {run_id[:80]}."
            raise NotFound(msg)
        if idempotency.made() is not None:
            return run
        idempotency.bind(tx, run_id)
        error = RunError(type="cancelled", message=f"{actor} cancelled the run.")
        if runs.end(tx, run_id, RunStatus.CANCELLED, error, allowed=[RunStatus.RUNNING, RunStatus.PAUSED]):
            cancel_tasks(tx, run_id, reason="run_cancelled", actor=actor)
            audit.record(tx, "run.cancelled", actor=actor, run_id=run_id, environment=run.environment)
        after = runs.get(tx, run_id)
        assert after is not None
        return after
