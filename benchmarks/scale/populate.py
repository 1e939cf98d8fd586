"""A database of some years: rows copied inside of it from one of each kind that the store wrote itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from builders import build_run, build_task
from sqlalchemy import Connection, Table, text

from kneo.clock import isoformat
from kneo.digest import digest_of
from kneo.records.run import RunStatus, StepRecord
from kneo.store import audit, history, idempotency, outbox, runs, tables, tasks
from kneo.store.engine import Store

SECONDS_APART = 30
"""Between two runs: two million of them are two years."""

BUNDLES, ENVIRONMENTS, WORKFLOWS, ACTORS, SPECS = 2_000, 50, 300, 500, 20_000

SEVERAL = ("runs", "audit_events", "tasks")
"""The tables of lists that environments limit."""


def report(line: str) -> None:
    """Print what happens now, with the time of day, on standard error: standard output has only the figures."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def fill(
    store: Store, count: int, environment: str = f"'env-' || (n % {ENVIRONMENTS})", only: Collection[str] = ()
) -> None:
    """Add so many runs with three steps for every two, a checkpoint, two audit events and an idempotency key each, and a
    message and a task for every fourth; with ``only`` the rows of these tables. Reports each table before its rows.

    The expression ``environment`` makes the environment of the n-th row.
    """
    begun = store.clock.now() - timedelta(seconds=SECONDS_APART * count)
    _add_templates(store, begun)
    sql = _Sqlite() if store.is_sqlite else _Postgres()
    _id, at = sql.identity, sql.time_of(begun)
    actor = f"'actor-' || (n % {ACTORS})"
    digest = f"'sha256:' || {sql.padded(f'n % {SPECS}', 64)}"
    copies: list[tuple[Table, int, dict[str, str]]] = [
        (
            tables.runs,
            count,
            {
                "id": _id("run", "n"),
                "created_at": at,
                "updated_at": at,
                "bundle": f"'bundle-' || (n % {BUNDLES})",
                "environment": environment,
                "workflow_name": f"'workflow-' || (n % {WORKFLOWS})",
                "spec_digest": digest,
                "status": "CASE WHEN n % 10000 > 9990 THEN 'running' WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END",
                "error": f"CASE WHEN n % 50 = 0 THEN {sql.object}('type', 'failed', 'message', 'It failed.') END",
            },
        ),
        (tables.steps, count * 3 // 2, {"run_id": _id("run", "n / 3 * 2"), "sequence": "n % 3"}),
        (tables.checkpoints, count, {"run_id": _id("run", "n"), "created_at": at}),
        (
            tables.audit_events,
            count * 2,
            {
                "id": _id("evt", "n"),
                "at": at,
                "actor": actor,
                "environment": environment,
                "run_id": _id("run", "n / 2"),
            },
        ),
        (
            tables.outbox,
            count // 4,
            {
                "id": _id("msg", "n"),
                "dedupe_key": "'key ' || n",
                "status": "'sent'",
                "created_at": at,
                "run_id": _id("run", "n * 4"),
                "payload": f"{sql.object}('run_id', {_id('run', 'n * 4')})",
            },
        ),
        (
            tables.tasks,
            count // 4,
            {
                "id": _id("cont", "n"),
                "run_id": _id("run", "n * 4"),
                "environment": environment,
                "status": "CASE WHEN n % 50 = 0 THEN 'open' ELSE 'applied' END",
                "created_at": at,
                "updated_at": at,
                "resolved_at": f"CASE WHEN n % 50 <> 0 THEN {at} END",
            },
        ),
        (tables.idempotency_keys, count, {"key": "'key ' || n", "created_at": at}),
        (tables.specs, min(SPECS, count), {"digest": digest, "created_at": at}),
    ]
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table, rows, members in copies:
            if not only or table.name in only:
                report(f"{table.name}: {rows:,} rows")
                _copy(connection, table, rows, members)
        if not store.is_sqlite:
            report("vacuum and analyze")
            connection.execute(text("VACUUM ANALYZE"))


class _Postgres:
    object = "jsonb_build_object"

    def padded(self, number: str, digits: int) -> str:
        return f"lpad(({number})::text, {digits}, '0')"

    def identity(self, prefix: str, number: str) -> str:
        return f"'{prefix}_' || {self.padded(number, 26)}"

    def time_of(self, begun: datetime) -> str:
        moment = f"timestamp '{begun:%Y-%m-%d %H:%M:%S}' + n * interval '{SECONDS_APART} s'"
        return f"""to_char({moment}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


class _Sqlite(_Postgres):
    object = "json_object"

    def padded(self, number: str, digits: int) -> str:
        return f"printf('%0{digits}d', {number})"

    def time_of(self, begun: datetime) -> str:
        return f"strftime('%Y-%m-%dT%H:%M:%S.000000Z', {int(begun.timestamp())} + n * {SECONDS_APART}, 'unixepoch')"


def _copy(connection: Connection, table: Table, rows: int, members: Mapping[str, str]) -> None:
    """Copy the one row of a table so often, with these members instead of its own."""
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    values = ", ".join(members.get(column.name, f'template."{column.name}"') for column in table.columns)
    statement = (
        f"WITH RECURSIVE template AS (SELECT * FROM {table.name} LIMIT 1), "  # noqa: S608 - constants
        f"series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {rows}) INSERT INTO {table.name} ({names}) "
        f"SELECT {values} FROM template, series WHERE true ON CONFLICT DO NOTHING"
    )
    connection.exec_driver_sql(statement if connection.dialect.name == "sqlite" else statement.replace("%", "%%"))


def _add_templates(store: Store, begun: datetime) -> None:
    """Write one row of each kind as the store does."""
    at = isoformat(begun)
    run = build_run(
        status=RunStatus.SUCCEEDED, input_text="An input of some length. " * 8, created_at=at, updated_at=at
    )
    with store.write() as tx:
        runs.insert_spec(tx, run.spec_digest, json.dumps({"version": "v1"}).encode())
        runs.insert_run(tx, run)
        history.add_checkpoint(tx, run.id, "step", step_id="a", state={}, metadata={})
        history.insert_step(tx, _step(run.id, at))
        outbox.insert(tx, [outbox.Letter(key="k", channel="mail", payload={"run_id": run.id})])
        tasks.insert_task(tx, build_task(run_id=run.id))
        audit.record(tx, "run.created", actor="ann", run_id=run.id, environment="dev")
        key = idempotency.KeyOf(principal="ann", scope="runs", key="k")
        request = idempotency.KeyedRequest(key=key, request_digest=digest_of(b"x"), attempt="a")
        idempotency.keep(tx, request, 201, {"run_id": run.id})


def _step(run_id: str, at: str) -> StepRecord:
    return StepRecord(
        run_id=run_id,
        sequence=1,
        step_id="a",
        kind="agent",
        attempt=0,
        status="completed",
        idempotency_key="k",
        input_text="An input of some length. " * 8,
        output_text="An output of some length. " * 8,
        error=None,
        code_digest=None,
        started_at=at,
        completed_at=at,
    )
