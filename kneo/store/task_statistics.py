"""What became of questions, the newest first. The cost is bounded by how many are looked at, however many there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, delete, func, insert, select

from kneo.clock import new_id
from kneo.records.task import DecisionKind, HumanTask, Outcome, TaskStatus
from kneo.store.engine import Tx, lock_table
from kneo.store.prepared import Prepared
from kneo.store.tables import task_count_changes, tasks
from kneo.store.task_filter import WAITING, TaskFilter, counting

OVER = (TaskStatus.APPLIED, TaskStatus.DECIDED, TaskStatus.EXPIRED)

SCANNED = 20_000
"""Questions of each status that are looked at for those of one environment or workflow."""


def newest(
    tx: Tx, first: str, *, environment: str | None = None, workflow_name: str | None = None, limit: int
) -> tuple[Outcome, ...]:
    """Read what became of the questions that were asked last.

    Args:
        tx: An open transaction.
        first: The id from which on questions count; ids say when they were asked.
        environment: Only of this one.
        workflow_name: Only of this one.
        limit: Most that are read.
    """
    wanted = {"environment": environment, "workflow_name": workflow_name}
    found = [_of_status(tx, status, first, wanted, limit) for status in OVER]
    return tuple(islice(merge(*found, key=attrgetter("id"), reverse=True), limit))


def subjects(tx: Tx, ids: Collection[str]) -> Mapping[str, str]:
    """Read what was shown, by the task's id."""
    rows = tx.connection.execute(select(tasks.c.id, tasks.c.subject).where(tasks.c.id.in_(ids)))
    return {row.id: row.subject for row in rows}


def _of_status(
    tx: Tx, status: TaskStatus, first: str, wanted: Mapping[str, str | None], limit: int
) -> Iterator[Outcome]:
    for row in tx.connection.execute(of_status(status, first, wanted, limit)):
        yield _outcome(row)


def of_status(status: TaskStatus, first: str, wanted: Mapping[str, str | None], limit: int) -> Select[Any]:
    """Spell the question for one status: on status and id there is an index, so no more is read than asked for."""
    scanned = (
        select(tasks.c.id)
        .where(tasks.c.status == status, tasks.c.id >= first)
        .order_by(tasks.c.id.desc())
        .limit(SCANNED if any(wanted.values()) else limit)
        .subquery()
    )
    statement = _ROWS.join(scanned, scanned.c.id == tasks.c.id)
    for name, value in wanted.items():
        if value is not None:
            statement = statement.where(tasks.c[name] == value)
    return statement.order_by(tasks.c.id.desc()).limit(limit)


_ROWS: Select[Any] = select(
    *(tasks.c[name] for name in ("id", "environment", "workflow_name", "key", "position", "status", "created_at")),
    *(tasks.c[name] for name in ("resolved_at", "decision", "votes")),
    func.length(tasks.c.subject).label("shown_chars"),
)


def _outcome(row: Row[Any]) -> Outcome:
    decision = row.decision or {}
    return Outcome(
        id=row.id,
        environment=row.environment,
        workflow_name=row.workflow_name,
        key=row.key,
        position=row.position,
        status=TaskStatus(row.status),
        asked_at=row.created_at,
        resolved_at=row.resolved_at or row.created_at,
        shown_chars=row.shown_chars,
        decision=DecisionKind(decision["kind"]) if decision else None,
        by=decision.get("by"),
        content=decision.get("content") if decision.get("kind") == DecisionKind.EDITED else None,
        answers=tuple(vote["answer"] for vote in row.votes or ()),
    )


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


_INSERT = Prepared(insert(task_count_changes))


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


_KEPT = (
    task_count_changes.c.environment,
    task_count_changes.c.kind,
    task_count_changes.c.status,
    task_count_changes.c.escalated,
)
_AMOUNT = func.sum(task_count_changes.c.amount)
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
    table = task_count_changes.c
    wanted: list[ColumnElement[bool]] = [table.status.in_(bindparam("statuses", expanding=True))]
    wanted += [table[name] == bindparam(name) for name in ("environment", "kind") if name in asked]
    wanted += [table.escalated.is_(word == "escalated") for word in ("escalated", "not escalated") if word in asked]
    return select(_AMOUNT).where(*wanted)


def fold(tx: Tx) -> int:
    """Add up the changes so far; return how many rows that saved."""
    if tx.connection.execute(select(task_count_changes.c.id).offset(FOLD_ABOVE).limit(1)).first() is None:
        return 0
    lock_table(tx, "task_count_changes")
    rows = tx.connection.execute(select(task_count_changes).limit(FOLD_AT_MOST)).all()
    totals: dict[tuple[str | None, str, str, bool], int] = {}
    for row in rows:
        key = (row.environment, row.kind, row.status, row.escalated)
        totals[key] = totals.get(key, 0) + row.amount
    tx.connection.execute(delete(task_count_changes).where(task_count_changes.c.id.in_([row.id for row in rows])))
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
        tx.connection.execute(insert(task_count_changes), kept)
    return len(rows) - len(kept)
