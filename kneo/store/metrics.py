"""Counts for probes and metrics, by index where there may be many rows."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Table, func, select

from kneo.records.run import RunStatus
from kneo.records.task import TaskStatus
from kneo.store.engine import Tx
from kneo.store.prune import FINAL, RESOLVED
from kneo.store.tables import audit_pending, outbox, runs, tasks

ENDED: Mapping[Table, frozenset[str]] = {runs: frozenset(FINAL), tasks: frozenset(RESOLVED)}
"""The statuses of rows that are kept until retention deletes them, so that counting them takes longer and longer."""


def active_by_status(tx: Tx) -> tuple[dict[str, int], dict[str, int]]:
    """Count the runs and the human tasks that have not ended."""
    runs_active, tasks_active = (
        sorted(set(of) - ENDED[table]) for table, of in ((runs, RunStatus), (tasks, TaskStatus))
    )
    return _by_status(tx, runs.c.status, *runs_active), _by_status(tx, tasks.c.status, *tasks_active)


def ended_by_status(tx: Tx) -> tuple[dict[str, int], dict[str, int]]:
    """Count the runs and the human tasks that have ended. Reads an entry of an index for each."""
    return _by_status(tx, runs.c.status, *ENDED[runs]), _by_status(tx, tasks.c.status, *ENDED[tasks])


def unsent_messages(tx: Tx) -> dict[str, int]:
    """Count the messages of the outbox that are due or were given up."""
    return _by_status(tx, outbox.c.status, "waiting", "failed")


def _by_status(tx: Tx, column: Column[str], *statuses: str) -> dict[str, int]:
    rows = tx.connection.execute(select(column, func.count()).where(column.in_(statuses)).group_by(column))
    return dict.fromkeys(statuses, 0) | {row[0]: row[1] for row in rows}


def queue(tx: Tx) -> tuple[int, str | None]:
    """Count the runs that wait for a driver; return since when the first one waits."""
    row = tx.connection.execute(
        select(func.count(), func.min(runs.c.updated_at)).where(
            runs.c.status == RunStatus.RUNNING, runs.c.owner.is_(None)
        )
    ).one()
    return row[0], row[1]


def driven(tx: Tx) -> int:
    """Count the runs that have a driver."""
    has_driver = (runs.c.status == RunStatus.RUNNING) & runs.c.owner.is_not(None)
    return tx.connection.execute(select(func.count()).select_from(runs).where(has_driver)).scalar_one()


def unsealed_events(tx: Tx) -> int:
    """Count the audit events that have no place in the chain yet."""
    return tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
