"""The end of a task: its decision took effect, or nobody needs an answer any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kneo.errors import Conflict
from kneo.records.task import UNRESOLVED, HumanTask, TaskStatus
from kneo.store import runs, tasks
from kneo.store.engine import Tx
from kneo.tasks.happened import happened


def mark_applied(tx: Tx, task: HumanTask) -> None:
    """Say that a decision's effect is part of the run now; in the transaction that makes it so."""
    runs.lock(tx, task.run_id)
    if not tasks.change(tx, task, status=TaskStatus.APPLIED):
        msg = f"{task.id} changed while its decision was applied."
        raise Conflict(msg, code="human_task_decided")
    happened(tx, task, "applied", None)


def cancel_tasks(tx: Tx, run_id: str, *, reason: str, actor: str, only: Collection[str] | None = None) -> Sequence[str]:
    """Close what a run asked and no longer needs: all of it when the run is over, else ``only`` these."""
    runs.lock(tx, run_id)
    closed = []
    for task in tasks.of_run(tx, run_id, UNRESOLVED | {TaskStatus.DECIDED}):
        if only is not None and task.id not in only:
            continue
        if tasks.change(tx, task, status=TaskStatus.CANCELLED, metadata={**task.metadata, "reason": reason}):
            happened(tx, task, "cancelled", actor, {"reason": reason})
            closed.append(task.id)
    return closed
