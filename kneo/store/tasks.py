"""Human tasks. Every change is a compare-and-set on the version that was read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from sqlalchemy import ColumnElement, Row, func, insert, select, update

from kneo.state.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.store.engine import Tx
from kneo.store.tables import tasks

AnyRow = Row[*tuple[object, ...]]


def insert_task(tx: Tx, task: HumanTask) -> None:
    values = asdict(task) | {
        "options": list(task.options) if task.options is not None else None,
        "decisions": list(task.decisions),
        "created_at": tx.at,
        "updated_at": tx.at,
    }
    tx.connection.execute(insert(tasks).values(**values))


def get(tx: Tx, task_id: str) -> HumanTask | None:
    row = tx.connection.execute(select(tasks).where(tasks.c.id == task_id)).first()
    return _task(row) if row else None


def change(tx: Tx, task: HumanTask, **changes: object) -> bool:
    """Change a task if nobody did since it was read; say whether it worked."""
    done = tx.connection.execute(
        update(tasks)
        .where(tasks.c.id == task.id, tasks.c.version == task.version)
        .values(version=tasks.c.version + 1, updated_at=tx.at, **changes)
    )
    return done.rowcount == 1


def of_run(tx: Tx, run_id: str, statuses: Iterable[TaskStatus]) -> tuple[HumanTask, ...]:
    rows = tx.connection.execute(
        select(tasks).where(tasks.c.run_id == run_id, tasks.c.status.in_(list(statuses))).order_by(tasks.c.id)
    )
    return tuple(_task(row) for row in rows)


def due(tx: Tx, limit: int) -> tuple[HumanTask, ...]:
    """Find tasks whose deadline has passed and that nobody answered, the longest overdue first."""
    rows = tx.connection.execute(
        select(tasks)
        .where(tasks.c.status.in_(list(UNRESOLVED)), tasks.c.deadline_at <= tx.at, tasks.c.escalated_at.is_(None))
        .order_by(tasks.c.deadline_at)
        .limit(limit)
    )
    return tuple(_task(row) for row in rows)


def list_tasks(
    tx: Tx,
    *,
    statuses: Iterable[TaskStatus] = UNRESOLVED,
    run_id: str | None = None,
    descending: bool = False,
    limit: int = 100,
    offset: int = 0,
) -> tuple[HumanTask, ...]:
    order = tasks.c.id.desc() if descending else tasks.c.id.asc()
    rows = tx.connection.execute(
        select(tasks).where(*_conditions(statuses, run_id)).order_by(order).limit(limit).offset(offset)
    )
    return tuple(_task(row) for row in rows)


def count_tasks(tx: Tx, *, statuses: Iterable[TaskStatus] = UNRESOLVED, run_id: str | None = None) -> int:
    statement = select(func.count()).select_from(tasks).where(*_conditions(statuses, run_id))
    return tx.connection.execute(statement).scalar_one()


def _conditions(statuses: Iterable[TaskStatus], run_id: str | None) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = [tasks.c.status.in_(list(statuses))]
    if run_id is not None:
        wanted.append(tasks.c.run_id == run_id)
    return wanted


def _task(row: AnyRow) -> HumanTask:
    decision = None
    if row.decision is not None:
        decision = Decision(**{**row.decision, "kind": DecisionKind(row.decision["kind"])})
    values = row._asdict() | {
        "status": TaskStatus(row.status),
        "options": tuple(row.options) if row.options is not None else None,
        "decisions": tuple(DecisionKind(word) for word in row.decisions),
        "decision": decision,
    }
    return HumanTask(**values)
