"""The status of environments: conditions, releases, pending changes, holds and open tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kneo.errors import NotFound
from kneo.records.release import Condition, EnvironmentRecord, Hold, Pending, Release, Suspension
from kneo.records.task import HumanTask
from kneo.registry.record import environment_subject
from kneo.store import approvals, releases, tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import TaskFilter


@dataclass(frozen=True)
class EnvironmentStatus:
    """The status of one environment."""

    record: EnvironmentRecord | None
    name: str
    conditions: tuple[Condition, ...]
    releases: tuple[Release, ...]
    pending: tuple[Pending, ...] = ()
    holds: tuple[Hold, ...] = ()
    suspension: Suspension | None = None


def status(tx: Tx, name: str) -> EnvironmentStatus | None:
    """Return the status of an environment; None when Git never declared it."""
    record = releases.environment(tx, name)
    conditions = releases.list_conditions(tx, environment_subject(name))
    if record is None and not conditions:
        return None
    return EnvironmentStatus(
        record,
        name,
        conditions,
        releases.list_releases(tx, name),
        releases.pending(tx, name),
        approvals.list_holds(tx, name),
        approvals.suspension(tx, name),
    )


def find_status(tx: Tx, name: str) -> EnvironmentStatus:
    """Return the status of a declared environment.

    Raises:
        NotFound: Git never declared it.
    """
    current = status(tx, name)
    if current is None:
        msg = f"There is no environment {name[:80]!r}."
        raise NotFound(msg, code="environment_not_found", hint="List environments: kneo status")
    return current


def statuses(tx: Tx) -> tuple[EnvironmentStatus, ...]:
    """Return the status of every environment, by name."""
    current = (status(tx, name) for name in releases.environment_names(tx))
    return tuple(item for item in current if item is not None)


SHOWN = 5
"""Number of open tasks that are listed; the others are counted."""


@dataclass(frozen=True)
class OpenTasks:
    """The number of open tasks in an environment, and the oldest of them."""

    count: int
    first: Sequence[HumanTask]

    def __str__(self) -> str:
        if not self.count:
            return "No open tasks."
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
    """Return the open tasks of an environment, oldest first."""
    where = TaskFilter(environment=environment)
    return OpenTasks(tasks.count_tasks(tx, where), tasks.list_tasks(tx, where, limit=SHOWN))
