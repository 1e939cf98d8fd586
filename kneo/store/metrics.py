"""Counts for probes and metrics, by index where there may be many rows, and facts about a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, Table, func, select, text

from kneo.records.run import RunStatus
from kneo.records.task import TAKES_OVER, TaskStatus
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store.engine import APPLICATION, WORKER_LOCK, Store, Tx
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


def waiting_calls(tx: Tx, environment: str | None = None) -> tuple[int, str | None]:
    """Count the calls of other programs that wait for people, in one environment or in all; return since when the first one waits."""
    for_people = tasks.c.metadata[TAKES_OVER].as_string().is_(None) | (tasks.c.escalation > 0)
    query = select(func.count(runs.c.id.distinct()), func.min(tasks.c.created_at)).join(
        tasks, (tasks.c.run_id == runs.c.id) & tasks.c.resolved_at.is_(None)
    )
    where = [runs.c.status == RunStatus.PAUSED, runs.c.target == CALL_TARGET, for_people]
    if environment is not None:
        where.append(runs.c.environment == environment)
    row = tx.connection.execute(query.where(*where)).one()
    return row[0], row[1]


def driven(tx: Tx) -> int:
    """Count the runs that have a driver."""
    has_driver = (runs.c.status == RunStatus.RUNNING) & runs.c.owner.is_not(None)
    return tx.connection.execute(select(func.count()).select_from(runs).where(has_driver)).scalar_one()


def unsealed_events(tx: Tx) -> int:
    """Count the audit events that have no place in the chain yet."""
    return tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()


CONNECTIONS_PER_PROCESS = 15
"""The most connections that a process of Kneo opens for its transactions."""

CONNECTIONS_PER_WORKER = 6
"""Those that a worker opens besides: for its queue, its sign of life and what models write meanwhile."""

_HOLDERS = (
    "SELECT coalesce(split_part(application_name, ' ', 2), ''), coalesce(split_part(application_name, ' ', 3), '') "
    "FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND objid = (hashtext(:name)::bigint & 4294967295) ORDER BY 1, 2"
)


@dataclass(frozen=True)
class WorkerProcess:
    """A process that executes the steps of runs.

    Attributes:
        name: Its host and process id.
        sandbox: The highest level of sandboxes of its machine; empty where it is not known.
    """

    name: str
    sandbox: str


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A PostgreSQL server.

    Attributes:
        now: The time of its clock.
        max_connections: The connections that it accepts.
        reserved: Those of them that ordinary users do not get.
        used: Those of them that are open.
        processes: The processes of Kneo that are connected to this database.
        workers: Those of them that execute steps.
    """

    now: datetime
    max_connections: int
    reserved: int
    used: int
    processes: int
    workers: int


def read_server(store: Store) -> ServerFacts | None:
    """Read the facts of the server; ``None`` for SQLite, which has none."""
    if store.is_sqlite:
        return None
    with store.read() as tx:
        row = tx.connection.execute(
            text(
                "SELECT clock_timestamp(), current_setting('max_connections')::int, "
                "current_setting('superuser_reserved_connections')::int + "
                "coalesce(current_setting('reserved_connections', true), '0')::int, "
                "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
                "(SELECT count(DISTINCT split_part(application_name, ' ', 2)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE :processes)"
            ),
            {"processes": f"{APPLICATION}%"},
        ).one()
        workers = len(list_workers(tx))
    names = ("now", "max_connections", "reserved", "used", "processes")
    return ServerFacts(**dict(zip(names, row, strict=True)), workers=workers)


def has_worker(store: Store) -> bool:
    """Return whether a process executes the steps of runs on this database."""
    if store.is_sqlite:
        with store.exclusive(WORKER_LOCK) as lock:
            return not lock
    with store.read() as tx:
        return bool(list_workers(tx))


def list_workers(tx: Tx) -> list[WorkerProcess]:
    """Return the processes that execute steps on a PostgreSQL database; none for SQLite, which has one at most."""
    if tx.dialect.name == "sqlite":
        return []
    holders = tx.connection.execute(text(_HOLDERS), {"name": f"kneo:{WORKER_LOCK}"})
    return [WorkerProcess(name, sandbox) for name, sandbox in holders]
