"""Counts of unresolved tasks, and outcomes of resolved ones. Counts are stored as changes that are folded from time to time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, case, delete, func, insert, select

from kneo.clock import new_id
from kneo.records.run import IMPORTED, IMPORTER
from kneo.records.task import DecisionKind, HumanTask, Outcome, TaskStatus
from kneo.store.engine import Tx, lock_table
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import task_count_changes, tasks
from kneo.store.task_filter import WAITING, TaskFilter, counting

OVER = (TaskStatus.APPLIED, TaskStatus.DECIDED, TaskStatus.EXPIRED)

SCANNED = 20_000
"""Tasks of each status that are scanned for those of one environment or workflow."""


def newest(
    tx: Tx, first: str, *, environment: str | None = None, workflow_name: str | None = None, limit: int
) -> tuple[Outcome, ...]:
    """Read the outcomes of the newest resolved tasks, at a cost that the limit bounds.

    Args:
        tx: An open transaction.
        first: The lowest id; the order of ids is the order of creation.
        environment: Only tasks of this environment.
        workflow_name: Only tasks of this workflow.
        limit: The most outcomes.
    """
    if environment is not None and not tx.sees(environment):
        return ()
    where = {"environment": environment, "workflow_name": workflow_name}
    outcomes = [_read_status(tx, status, first, where, limit) for status in OVER]
    return tuple(islice(merge(*outcomes, key=attrgetter("id"), reverse=True), limit))


def subjects(tx: Tx, ids: Collection[str]) -> Mapping[str, str]:
    """Read the subjects of tasks, by id."""
    rows = tx.connection.execute(select(tasks.c.id, tasks.c.subject).where(tasks.c.id.in_(ids)))
    return {row.id: row.subject for row in rows}


def _read_status(
    tx: Tx, status: TaskStatus, first: str, where: Mapping[str, str | None], limit: int
) -> Iterator[Outcome]:
    for row in tx.connection.execute(of_status(status, first, where, limit, tx.reach)):
        # What another platform asked says nothing about the gates of this one.
        if IMPORTED not in (row.metadata or {}):
            yield _outcome(row)


def of_status(
    status: TaskStatus, first: str, where: Mapping[str, str | None], limit: int, reach: frozenset[str] | None = None
) -> Select[Any]:
    """Return the statement for one status, which scans the index on status and id."""
    scanned = (
        select(tasks.c.id)
        .where(tasks.c.status == status, tasks.c.id >= first)
        .order_by(tasks.c.id.desc())
        .limit(SCANNED if any(where.values()) or reach is not None else limit)
        .subquery()
    )
    statement = _ROWS.join(scanned, scanned.c.id == tasks.c.id)
    for name, value in where.items():
        if value is not None:
            statement = statement.where(tasks.c[name] == value)
    if reach is not None:
        statement = statement.where(tasks.c.environment.in_(sorted(reach)))
    return statement.order_by(tasks.c.id.desc()).limit(limit)


_ROWS: Select[Any] = select(
    *(tasks.c[name] for name in ("id", "environment", "workflow_name", "key", "position", "status", "created_at")),
    *(tasks.c[name] for name in ("resolved_at", "decision", "votes")),
    func.length(tasks.c.subject).label("shown_chars"),
    # A person may have the name of the importer, too.
    case((tasks.c.requester == IMPORTER, tasks.c.metadata)).label("metadata"),
)


def _outcome(row: Row) -> Outcome:
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
"""The number of changes above which they are folded into one row for each kind of task."""

FOLD_AT_MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """The numbers of open tasks."""

    waiting: int
    escalated: int
    overdue: int
    by_status: Mapping[str, int]
    by_kind: Mapping[str, int]
    by_environment: Mapping[str, int]


_INSERT = Prepared(insert(task_count_changes))


def add(tx: Tx, changes: Iterable[tuple[HumanTask, int]]) -> None:
    """Store changes of the counts: 1 for an added task, -1 for a removed one."""
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
    _INSERT.insert(tx, *rows)


_GROUP = (
    task_count_changes.c.environment,
    task_count_changes.c.kind,
    task_count_changes.c.status,
    task_count_changes.c.escalated,
)
_AMOUNT = func.sum(task_count_changes.c.amount)
_SUMS = select(*_GROUP, _AMOUNT.label("amount")).group_by(*_GROUP).having(_AMOUNT != 0)


def summary(tx: Tx) -> TaskSummary:
    """Read the counts of unresolved tasks, at a cost that does not grow with them."""
    rows = [row for row in tx.connection.execute(_SUMS) if tx.sees(row.environment)]
    statuses: dict[str, int] = {}
    kinds: dict[str, int] = {}
    environments: dict[str, int] = {}
    late = TaskFilter(overdue_at=tx.at).within(tx.reach)
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
    """Read the count of tasks that match a filter; ``None`` where the filter needs more than the stored counts."""
    beyond = replace(where, statuses=WAITING.statuses, escalated=None, environment=None, kind=None, reach=None)
    if beyond != WAITING or not where.waits:
        return None
    values = where.values | {"statuses": sorted(where.statuses)}
    return int(tx.connection.execute(_sum_of(where.conditions), values).scalar() or 0)


@cache
def _sum_of(names: frozenset[str]) -> Select[Any]:
    table = task_count_changes.c
    where: list[ColumnElement[bool]] = [table.status.in_(bindparam("statuses", expanding=True))]
    where += [table[name] == bindparam(name) for name in ("environment", "kind") if name in names]
    where += [table.environment.in_(bindparam("reach", expanding=True)) for name in names if name == "reach"]
    where += [table.escalated.is_(word == "escalated") for word in ("escalated", "not escalated") if word in names]
    return select(_AMOUNT).where(*where)


def has_many(tx: Tx) -> bool:
    """Return whether there are so many changes that they are to be folded."""
    return tx.connection.execute(select(task_count_changes.c.id).offset(FOLD_ABOVE).limit(1)).first() is not None


def fold(tx: Tx) -> int:
    """Fold the changes into one row for each kind of task, if there are many; return how many rows that removed."""
    lock_table(tx, "task_count_changes")
    if not has_many(tx):
        return 0
    rows = tx.connection.execute(select(task_count_changes).limit(FOLD_AT_MOST)).all()
    totals: dict[tuple[str | None, str, str, bool], int] = {}
    for row in rows:
        key = (row.environment, row.kind, row.status, row.escalated)
        totals[key] = totals.get(key, 0) + row.amount
    tx.connection.execute(delete(task_count_changes).where(task_count_changes.c.id.in_([row.id for row in rows])))
    names = [column.name for column in _GROUP]
    folded = [
        dict(zip(names, key, strict=True)) | {"id": new_id("tly", tx.now), "amount": amount}
        for key, amount in totals.items()
        if amount
    ]
    if folded:
        tx.connection.execute(insert(task_count_changes), folded)
    return len(rows) - len(folded)
