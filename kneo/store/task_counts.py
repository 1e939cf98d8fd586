"""How many tasks wait, kept as changes that are added up: nobody who asks or answers waits for a counter's row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, delete, func, insert, select

from kneo.clock import new_id
from kneo.record_copy import replace
from kneo.records.task import HumanTask
from kneo.store.engine import Tx, lock_table
from kneo.store.prepared import Prepared
from kneo.store.tables import task_tallies
from kneo.store.task_filter import WAITING, TaskFilter, counting

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


_INSERT = Prepared(insert(task_tallies))


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
    _INSERT.change_many(tx, rows)


_KEPT = (task_tallies.c.environment, task_tallies.c.kind, task_tallies.c.status, task_tallies.c.escalated)
_AMOUNT = func.sum(task_tallies.c.amount)
_SUMS = select(*_KEPT, _AMOUNT.label("amount")).group_by(*_KEPT).having(_AMOUNT != 0)


def summary(tx: Tx) -> TaskSummary:
    """Count what waits. The cost does not grow with it."""
    rows = tx.connection.execute(_SUMS).all()
    statuses: dict[str, int] = {}
    kinds: dict[str, int] = {}
    environments: dict[str, int] = {}
    late = TaskFilter(overdue_at=tx.at)
    for row in rows:
        for counts, name in ((statuses, row.status), (kinds, row.kind), (environments, row.environment or "")):
            counts[name] = counts.get(name, 0) + int(row.amount)
    return TaskSummary(
        waiting=sum(statuses.values()),
        escalated=sum(int(row.amount) for row in rows if row.escalated),
        overdue=tx.connection.execute(counting(late.conditions), late.values).scalar_one(),
        by_status=statuses,
        by_kind=kinds,
        by_environment=environments,
    )


def count(tx: Tx, where: TaskFilter) -> int | None:
    """Count what waits without looking at it; ``None`` where the filter asks for more than is kept here."""
    beyond = replace(where, statuses=WAITING.statuses, escalated=None, environment=None, kind=None)
    if beyond != WAITING or not where.waits:
        return None
    values = where.values | {"statuses": sorted(where.statuses)}
    return int(tx.connection.execute(_sum_of(where.conditions), values).scalar() or 0)


@cache
def _sum_of(asked: frozenset[str]) -> Select[Any]:
    table = task_tallies.c
    wanted: list[ColumnElement[bool]] = [table.status.in_(bindparam("statuses", expanding=True))]
    wanted += [table[name] == bindparam(name) for name in ("environment", "kind") if name in asked]
    wanted += [table.escalated.is_(word == "escalated") for word in ("escalated", "not escalated") if word in asked]
    return select(_AMOUNT).where(*wanted)


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
