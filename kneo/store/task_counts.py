"""How many tasks wait, kept as changes that are added up: nobody who asks or answers waits for a counter's row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import ColumnElement, delete, func, insert, select

from kneo.clock import new_id
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store.engine import Tx, lock_table
from kneo.store.tables import task_tallies, tasks
from kneo.store.task_filter import WAITING, TaskFilter

FOLD_ABOVE = 500
"""Changes that are added up one by one before they are folded into one row for each kind of task."""

FOLD_AT_MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """What waits for people."""

    waiting: int = 0
    escalated: int = 0
    overdue: int = 0
    by_status: Mapping[str, int] = field(default_factory=dict)
    by_kind: Mapping[str, int] = field(default_factory=dict)
    by_environment: Mapping[str, int] = field(default_factory=dict)


def add(tx: Tx, changes: Iterable[tuple[HumanTask, int]]) -> None:
    """Count tasks in (1) or out (-1) as they are."""
    rows = [
        {
            "id": new_id("tly", tx.now),
            "environment": task.environment,
            "kind": task.kind,
            "status": task.status,
            "escalated": task.escalation > 0,
            "amount": amount,
        }
        for task, amount in changes
    ]
    tx.connection.execute(insert(task_tallies), rows)


def summary(tx: Tx) -> TaskSummary:
    """Count what waits. The cost does not grow with it."""
    table = task_tallies.c
    rows = tx.connection.execute(
        select(table.environment, table.kind, table.status, table.escalated, func.sum(table.amount).label("amount"))
        .group_by(table.environment, table.kind, table.status, table.escalated)
        .having(func.sum(table.amount) != 0)
    ).all()
    statuses: dict[str, int] = {}
    kinds: dict[str, int] = {}
    environments: dict[str, int] = {}
    for row in rows:
        for counts, name in ((statuses, row.status), (kinds, row.kind), (environments, row.environment or "")):
            counts[name] = counts.get(name, 0) + int(row.amount)
    late = select(func.count()).select_from(tasks).where(tasks.c.resolved_at.is_(None), tasks.c.due_at < tx.at)
    return TaskSummary(
        waiting=sum(statuses.values()),
        escalated=sum(int(row.amount) for row in rows if row.escalated),
        overdue=tx.connection.execute(late).scalar_one(),
        by_status=statuses,
        by_kind=kinds,
        by_environment=environments,
    )


def count(tx: Tx, where: TaskFilter) -> int | None:
    """Count what waits without looking at it; ``None`` where the filter asks for more than is kept here."""
    beyond = replace(where, statuses=WAITING.statuses, escalated=None, environment=None, kind=None)
    if beyond != WAITING or not UNRESOLVED.issuperset(where.statuses):
        return None
    table = task_tallies.c
    wanted: list[ColumnElement[bool]] = [table.status.in_(sorted(where.statuses))]
    if where.escalated is not None:
        wanted.append(table.escalated.is_(where.escalated))
    if where.environment is not None:
        wanted.append(table.environment == where.environment)
    if where.kind is not None:
        wanted.append(table.kind == where.kind)
    found = tx.connection.execute(select(func.sum(table.amount)).where(*wanted)).scalar()
    return int(found or 0)


def fold(tx: Tx) -> int:
    """Add up the changes so far; return how many rows that saved."""
    if tx.connection.execute(select(task_tallies.c.id).offset(FOLD_ABOVE).limit(1)).first() is None:
        return 0
    lock_table(tx, "task_tallies")
    rows = tx.connection.execute(select(task_tallies).limit(FOLD_AT_MOST)).all()
    totals: dict[tuple[str | None, str, str, bool], int] = {}
    for row in rows:
        key = (row.environment, row.kind, row.status, row.escalated)
        totals[key] = totals.get(key, 0) + row.amount
    tx.connection.execute(delete(task_tallies).where(task_tallies.c.id.in_([row.id for row in rows])))
    kept = [
        {
            "id": new_id("tly", tx.now),
            "environment": where,
            "kind": kind,
            "status": status,
            "escalated": late,
            "amount": n,
        }
        for (where, kind, status, late), n in totals.items()
        if n
    ]
    if kept:
        tx.connection.execute(insert(task_tallies), kept)
    return len(rows) - len(kept)
