"""How much there is of everything, for probes and metrics. Counts only, by index where there may be many."""

from __future__ import annotations

from sqlalchemy import func, select

from kneo.records.run import RunStatus
from kneo.store.engine import Tx
from kneo.store.tables import audit_pending, outbox, runs, tasks


def runs_by_status(tx: Tx) -> dict[str, int]:
    """Count runs."""
    rows = tx.connection.execute(select(runs.c.status, func.count().label("n")).group_by(runs.c.status))
    return {row.status: row.n for row in rows}


def tasks_by_status(tx: Tx) -> dict[str, int]:
    """Count human tasks."""
    rows = tx.connection.execute(select(tasks.c.status, func.count().label("n")).group_by(tasks.c.status))
    return {row.status: row.n for row in rows}


def queue(tx: Tx) -> tuple[int, str | None]:
    """Count runs that wait for somebody to drive them; say since when the first does."""
    row = tx.connection.execute(
        select(func.count().label("n"), func.min(runs.c.updated_at).label("since")).where(
            runs.c.status == RunStatus.RUNNING, runs.c.owner.is_(None)
        )
    ).one()
    return row.n, row.since


def driven(tx: Tx) -> int:
    """Count runs that somebody drives now."""
    count: int = tx.connection.execute(
        select(func.count()).select_from(runs).where(runs.c.status == RunStatus.RUNNING, runs.c.owner.is_not(None))
    ).scalar_one()
    return count


def unsent_messages(tx: Tx) -> dict[str, int]:
    """Count messages of the outbox that wait or were given up."""
    unsent = ("waiting", "failed")
    rows = tx.connection.execute(
        select(outbox.c.status, func.count().label("n")).where(outbox.c.status.in_(unsent)).group_by(outbox.c.status)
    )
    return dict.fromkeys(unsent, 0) | {row.status: row.n for row in rows}


def unsealed_events(tx: Tx) -> int:
    """Count audit events that have no place in the chain yet."""
    count: int = tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
    return count
