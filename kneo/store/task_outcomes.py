"""What became of questions, the newest first. The cost is bounded by how many are looked at, however many there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import Row, Select, func, select

from kneo.records.outcome import Outcome
from kneo.records.task import DecisionKind, TaskStatus
from kneo.store.engine import Tx
from kneo.store.tables import tasks

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
