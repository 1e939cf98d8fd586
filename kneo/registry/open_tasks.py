"""The questions that are open in an environment: what somebody who takes its file away should know of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kneo.records.task import HumanTask
from kneo.store import tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import TaskFilter

SHOWN = 5
"""Open questions that are named; the others are counted."""


@dataclass(frozen=True)
class OpenTasks:
    """How many questions wait in an environment, and the longest waiting of them."""

    count: int
    first: Sequence[HumanTask]

    def __str__(self) -> str:
        if not self.count:
            return "No questions are open there."
        named = ", ".join(f"{task.id} ({task.workflow_name}: {task.key})" for task in self.first)
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        head = f"{self.count} questions are open there" if self.count > 1 else "1 question is open there"
        return (
            f"{head}: {named}{more}. Answers are still taken, and each run keeps the bundle that it was started with."
        )

    def as_json(self) -> dict[str, object]:
        named = [
            {
                "continuation_id": task.id,
                "run_id": task.run_id,
                "workflow_name": task.workflow_name,
                "key": task.key,
                "bundle_digest": task.bundle_digest,
            }
            for task in self.first
        ]
        return {"count": self.count, "first": named}


def open_tasks(tx: Tx, environment: str) -> OpenTasks:
    """Find the questions that wait in an environment, the longest waiting first."""
    where = TaskFilter(environment=environment)
    return OpenTasks(tasks.count_tasks(tx, where), tasks.list_tasks(tx, where, limit=SHOWN))
