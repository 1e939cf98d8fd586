"""Which human tasks somebody wants to see, and in which order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, and_, func, or_, select

from kneo.state.task import UNRESOLVED, TaskStatus
from kneo.store.run_filter import LIKE_ESCAPE, escaped
from kneo.store.tables import task_candidates, tasks

NEVER = "9999-12-31T23:59:59.999999Z"

SORTABLE = {
    "id": tasks.c.id,
    "created_at": tasks.c.id,
    "priority": tasks.c.priority,
    "due_at": tasks.c.due_at,
    "expires_at": func.coalesce(tasks.c.deadline_at, NEVER),
}
"""What a list can be sorted by; the ids of tasks are in the order in which they were asked. Without a deadline comes
after every deadline."""


EVERYTHING = 2**53
"""More rows than there are."""


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Conditions that all hold; ``None`` asks for nothing."""

    statuses: Collection[TaskStatus] = UNRESOLVED
    escalated: bool | None = None
    overdue_at: str | None = None
    """Only tasks that were due before this time."""
    environment: str | None = None
    kind: str | None = None
    assignee: str | None = None
    claimed_by: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    workflow_name: str | None = None
    workflow_type: str | None = None
    who: Collection[str] | None = None
    """Everything that one person is, as ``task_candidates`` has it; only what they may answer."""
    restricted: bool | None = None
    """With ``who``: only what names its candidates, or only what does not."""
    text: str | None = None
    """Somewhere in the title, whatever its case."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what a row of ``tasks`` must satisfy."""
        equal = {
            "environment": self.environment,
            "kind": self.kind,
            "assignee": self.assignee,
            "claimed_by": self.claimed_by,
            "step_id": self.step_id,
            "run_id": self.run_id,
            "workflow_name": self.workflow_name,
            "workflow_type": self.workflow_type,
        }
        wanted: list[ColumnElement[bool]] = [
            tasks.c[name] == value for name, value in equal.items() if value is not None
        ]
        statuses = frozenset(self.statuses)
        if statuses <= UNRESOLVED:
            # Said without a parameter, so that the database knows it may use the inbox's own indexes.
            wanted.append(tasks.c.resolved_at.is_(None))
        if statuses != UNRESOLVED:
            wanted.append(tasks.c.status.in_(sorted(statuses)))
        if self.escalated is not None:
            wanted.append(self._escalated() if self.escalated else tasks.c.escalation == 0)
        if self.overdue_at is not None:
            wanted.append(tasks.c.due_at < self.overdue_at)
        if self.text is not None:
            wanted.append(self._says(self.text))
        if self.who is not None:
            wanted.append(self._may_answer(self.who))
        return wanted

    @staticmethod
    def _escalated() -> ColumnElement[bool]:
        # Few ever are: found by their own index, and not by walking through everything that waits.
        inner = tasks.alias("escalated")
        ids = select(inner.c.id).where(inner.c.resolved_at.is_(None), inner.c.escalation > 0)
        return tasks.c.id.in_(ids)

    @property
    def before_id(self) -> tuple[ColumnElement[str], ...]:
        """What has to stand before the id in an order for the inbox's own indexes to serve it."""
        return (tasks.c.resolved_at,) if UNRESOLVED.issuperset(self.statuses) else ()

    def parts(self) -> tuple[TaskFilter, ...]:
        """Split into filters of which each task fits one at most, and each of which an index answers."""
        if self.who is None or self.restricted is not None:
            return (self,)
        return replace(self, restricted=False), replace(self, restricted=True)

    def _says(self, words: str) -> ColumnElement[bool]:
        inner = tasks.alias("titled")
        found = inner.c.title.ilike(f"%{escaped(words)}%", escape=LIKE_ESCAPE)
        if not UNRESOLVED.issuperset(self.statuses):
            return tasks.c.title.ilike(f"%{escaped(words)}%", escape=LIKE_ESCAPE)
        # By an index that has the titles beside the ids. The order and the bound keep SQLite from taking a shorter one
        # and reading every row for its title.
        ids = select(inner.c.id).where(inner.c.resolved_at.is_(None), found)
        ids = ids.order_by(inner.c.resolved_at, inner.c.id).limit(EVERYTHING)
        return tasks.c.id.in_(ids)

    def _may_answer(self, who: Collection[str]) -> ColumnElement[bool]:
        named = select(task_candidates.c.task_id).where(task_candidates.c.who.in_(sorted(who)))
        # Looked up once and not for each task: this is what counting a full inbox costs.
        refused = select(task_candidates.c.task_id).where(
            task_candidates.c.who.in_(sorted(f"not:{one.removeprefix('user:')}" for one in who if one[:5] == "user:"))
        )
        asked: ColumnElement[bool] = or_(tasks.c.restricted.is_(False), tasks.c.id.in_(named))
        if self.restricted is not None:
            asked = (
                and_(tasks.c.restricted, tasks.c.id.in_(named)) if self.restricted else tasks.c.restricted.is_(False)
            )
        return and_(asked, tasks.c.id.not_in(refused))


EVERY_TASK = TaskFilter(statuses=frozenset(TaskStatus))
WAITING = TaskFilter()
