"""The queue of runs to drive on PostgreSQL: jobs of Procrastinate, added in the transaction that makes a run runnable.

SQLite has no queue; the one process that executes steps listens for runs and polls for those of other processes.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import text

from kneo.clock import isoformat
from kneo.records.run import STATE_VERSION, Suspicion
from kneo.store.engine import Tx
from kneo.store.prepared import Insertion

DUE = "due"
"""The topic of runs to drive."""


class DueRun(NamedTuple):
    """A run to drive, and its environment."""

    id: str
    environment: str | None


SCHEMA = "kneo_queue"
"""The schema of Procrastinate's tables."""

QUEUE, TASK = "runs", "kneo.drive"

CLAIM_PREFIX = "job_"
"""A driver's claim is the id of its job, so that the next worker with the job of a dead driver takes over the run."""

MAX_SHARE = 1_000
"""Runs of an environment that are counted for the turn of a further one."""

_TURN = f"""(SELECT coalesce((SELECT j.priority FROM {SCHEMA}.procrastinate_jobs j WHERE j.status = 'todo'
    ORDER BY j.priority DESC, j.id LIMIT 1), 0) + 1 - count(*)::int
    FROM (SELECT 1 FROM runs r WHERE r.environment IS NOT DISTINCT FROM %s AND r.status = 'running' AND r.id <> %s
          LIMIT {MAX_SHARE}) AS others)"""  # noqa: S608 - our own names
"""The priority of a job. Environments take turns: each further run of one is a turn after its last one, and the first run of
another one is due in the present turn.
"""

_DEFER = Insertion(
    table="",
    head=f"SELECT {SCHEMA}.procrastinate_defer_jobs_v1(ARRAY[",
    row=f"ROW(%s, %s, {_TURN}, NULL, NULL, CAST(%s AS jsonb), NULL)::{SCHEMA}.procrastinate_job_to_defer_v1",
    names=("queue", "task", "environment", "run", "args"),
    tail="])",
)

_PRESENT_TURN = f"""coalesce((SELECT j.priority FROM {SCHEMA}.procrastinate_jobs j WHERE j.status = 'todo'
    ORDER BY j.priority DESC, j.id LIMIT 1), 0)"""  # noqa: S608 - our own names
"""The priority of a job for a run that waited because its environment executed as many as it may: its turns have passed."""

_DEFER_NOW = replace(_DEFER, row=_DEFER.row.replace(_TURN, _PRESENT_TURN), names=("queue", "task", "args"))

_LOST = text(f"""
    SELECT id, environment FROM (
        SELECT r.id, r.environment, row_number() OVER (PARTITION BY r.environment ORDER BY r.id) AS place FROM runs r
        WHERE r.status = 'running' AND r.owner IS NULL AND r.updated_at < :before AND r.state_version <= :version
          AND r.resume_at IS NULL
          AND NOT EXISTS (SELECT 1 FROM {SCHEMA}.procrastinate_jobs j
                          WHERE j.status IN ('todo', 'doing') AND j.args ->> 'run_id' = r.id)) AS lost
    WHERE place <= 1000
""")  # noqa: S608 - our own names

_ORPHANED = text(f"""
    UPDATE runs SET owner = NULL,
        suspicion = CASE WHEN suspicion >= {Suspicion.ALONE:d} THEN {Suspicion.CONFIRMED:d}
                         WHEN suspicion >= {Suspicion.ONE:d} THEN {Suspicion.SUSPECT:d} ELSE {Suspicion.ONE:d} END
    WHERE status = 'running' AND owner IS NOT NULL AND updated_at < :before
      AND NOT EXISTS (SELECT 1 FROM {SCHEMA}.procrastinate_jobs j
                      WHERE j.status IN ('todo', 'doing') AND '{CLAIM_PREFIX}' || j.id = runs.owner)
    RETURNING id, environment
""")  # noqa: S608 - our own names


SIGN_OF_LIFE = 1_801_610_607
"""The class of the advisory locks that workers hold, each for the id that Procrastinate gave it. A killed worker loses its lock."""

_DEAD = f"""
    SELECT j.id FROM {SCHEMA}.procrastinate_jobs j LEFT JOIN {SCHEMA}.procrastinate_workers w ON w.id = j.worker_id
    WHERE j.status = 'doing' AND j.queue_name = '{QUEUE}' AND (
        w.id IS NULL OR w.last_heartbeat < now() - %(stall)s OR (w.last_heartbeat < now() - %(gone)s AND NOT EXISTS (
            SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted
              AND l.classid = {SIGN_OF_LIFE} AND l.objid = w.id AND l.objsubid = 2)))
"""  # noqa: S608 - our own names

WATCH = f"""
    SELECT 'alive' AS what, {SCHEMA}.procrastinate_update_heartbeat_v1(%(worker)s)::text AS id
    UNION ALL SELECT 'dead', id::text FROM ({_DEAD}) AS dead
    UNION ALL SELECT 'due', '' WHERE EXISTS (SELECT 1 FROM runs WHERE resume_at <= %(now)s AND owner IS NULL)
    UNION ALL SELECT 'next', r.environment FROM runs r WHERE r.id = (
        SELECT j.args ->> 'run_id' FROM {SCHEMA}.procrastinate_jobs j
        WHERE j.status = 'todo' ORDER BY j.priority DESC, j.id LIMIT 1)
"""  # noqa: S608 - our own names
"""One turn of a worker: store its heartbeat, and find the jobs of dead workers, whether a parked run is due, and
the environment of the next job.

A worker is dead that was silent for ``stall``, or lost its lock and was silent for ``gone``. A worker of a version without these
locks counts by its heartbeats.
"""

FETCH = f"""
    WITH RECURSIVE fetched (number, job) AS (
        SELECT 1, {SCHEMA}.procrastinate_fetch_job_v2(%(queues)s::varchar[], %(worker_id)s)
        UNION ALL
        SELECT number + 1, {SCHEMA}.procrastinate_fetch_job_v2(%(queues)s::varchar[], %(worker_id)s)
        FROM fetched WHERE number < %(most)s AND (job).id IS NOT NULL)
    SELECT (job).* FROM fetched WHERE (job).id IS NOT NULL
"""  # noqa: S608 - our own name
"""Fetch jobs as Procrastinate fetches one, up to ``most``."""

ANNOUNCE = f"""
    SELECT pg_notify('procrastinate_queue_v1#{QUEUE}', json_build_object('type', 'job_inserted', 'job_id', %(job)s::bigint)::text)
"""
"""Announce a retried job as Procrastinate announces new ones."""


_DROP = text(f"DELETE FROM {SCHEMA}.procrastinate_jobs WHERE status = 'todo'")  # noqa: S608 - our own name

_PIN_SEARCH_PATH = f"""
DO $$
DECLARE found regprocedure;
BEGIN
    FOR found IN SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE n.nspname = '{SCHEMA}'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = {SCHEMA}, pg_catalog', found);
    END LOOP;
END
$$
"""  # noqa: S608 - names of this module
"""Procrastinate's functions name their tables without a schema and are called from transactions on Kneo's tables too."""


def create_schema(tx: Tx) -> None:
    """Create Procrastinate's tables and functions in a new PostgreSQL database."""
    if tx.dialect.name != "postgresql":
        return
    # Commands on SQLite do without Procrastinate.
    statements = importlib.import_module("procrastinate.schema").SchemaManager.get_schema()
    before = tx.connection.exec_driver_sql("SHOW search_path").scalar_one()
    tx.connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
    tx.connection.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")
    driver = tx.connection.connection.driver_connection
    assert driver is not None
    # SQLAlchemy would read the scripts' percent signs as parameters.
    driver.execute(statements)
    driver.execute(_PIN_SEARCH_PATH)
    tx.connection.exec_driver_sql(f"SET LOCAL search_path TO {before}")


def enqueue(tx: Tx, run_id: str, environment: str | None) -> None:
    """Hand a run to a worker once this transaction is committed."""
    tx.notify(DUE, DueRun(run_id, environment))
    if tx.dialect.name == "postgresql":
        tx.calls[QUEUE, run_id] = _DEFER, [QUEUE, TASK, environment, run_id, json.dumps({"run_id": run_id})]


def enqueue_again(tx: Tx, run_id: str, environment: str | None) -> None:
    """Hand a run that waited for another one of its environment to a worker, in the present turn."""
    tx.notify(DUE, DueRun(run_id, environment))
    if tx.dialect.name == "postgresql":
        tx.calls[QUEUE, run_id] = _DEFER_NOW, [QUEUE, TASK, json.dumps({"run_id": run_id})]


def unlimited(_tx: Tx, _environment: str | None) -> int | None:
    """Return the number of further runs that an environment without a quota may execute."""
    return None


def restore(tx: Tx, older_than: timedelta, count_free: Callable[[Tx, str | None], int | None] = unlimited) -> int:
    """Enqueue runs without a driver and without a job, and release those whose driver is gone; return how many.

    Every change that makes a run runnable enqueues it; this covers other ways, such as a restored backup.

    Args:
        tx: The transaction.
        older_than: Runs that changed later are left.
        count_free: Returns how many further runs an environment may execute; ``None`` for any number. The others wait.
    """
    before = isoformat(tx.now - older_than)
    freed = tx.connection.execute(_ORPHANED, {"before": before}).all()
    lost = tx.connection.execute(_LOST, {"before": before, "version": STATE_VERSION}).all()
    found = {row.id: row.environment for row in (*freed, *lost)}
    free = {environment: count_free(tx, environment) for environment in set(found.values())}
    enqueued = Counter[str | None]()
    for run_id in sorted(found):
        environment = found[run_id]
        most = free[environment]
        if most is None or enqueued[environment] < most:
            enqueued[environment] += 1
            enqueue(tx, run_id, environment)
    return enqueued.total()


def drop(tx: Tx) -> None:
    """Delete all jobs that no worker has begun: another dispatcher hands out the runs of this database."""
    tx.connection.execute(_DROP)
