"""A PostgreSQL database of some years: rows copied inside the server from one of each kind that the store wrote itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
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

TIME_FORMAT = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'


def report(line: str) -> None:
    """Print what happens now, with the time of day, on standard error: standard output has only the figures."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def fill(store: Store, count: int) -> None:
    """Add so many runs with three steps for every two, a checkpoint, two audit events and an idempotency key each, and a
    message and a task for every fourth. Reports each table before its rows.
    """
    begun = store.clock.now() - timedelta(seconds=SECONDS_APART * count)
    _add_templates(store, begun)
    at = f"to_char(timestamp '{begun:%Y-%m-%d %H:%M:%S}' + n * interval '{SECONDS_APART} s', '{TIME_FORMAT}')"
    actor, environment = f"'actor-' || n % {ACTORS}", f"'env-' || n % {ENVIRONMENTS}"
    digest = f"'sha256:' || lpad((n % {SPECS})::text, 64, '0')"
    copies: list[tuple[Table, int, dict[str, str]]] = [
        (
            tables.runs,
            count,
            {
                "id": _id("run", "n"),
                "created_at": at,
                "updated_at": at,
                "bundle": f"'bundle-' || n % {BUNDLES}",
                "environment": environment,
                "workflow_name": f"'workflow-' || n % {WORKFLOWS}",
                "spec_digest": digest,
                "status": "CASE WHEN n % 10000 > 9990 THEN 'running' WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END",
                "error": "CASE WHEN n % 50 = 0 THEN jsonb_build_object('type', 'failed', 'message', 'It failed.') END",
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
                "payload": f"jsonb_build_object('run_id', {_id('run', 'n * 4')})",
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
            report(f"{table.name}: {rows:,} rows")
            _copy(connection, table, rows, members)
        report("vacuum and analyze")
        connection.execute(text("VACUUM ANALYZE"))


def _id(prefix: str, number: str) -> str:
    return f"'{prefix}_' || lpad(({number})::text, 26, '0')"


def _copy(connection: Connection, table: Table, rows: int, members: Mapping[str, str]) -> None:
    """Copy the one row of a table so often, with these members instead of its own."""
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    values = ", ".join(members.get(column.name, f'template."{column.name}"') for column in table.columns)
    connection.exec_driver_sql(
        f"WITH template AS (SELECT * FROM {table.name} LIMIT 1) INSERT INTO {table.name} ({names}) "  # noqa: S608 - constants
        f"SELECT {values} FROM template, generate_series(1, {rows}) n ON CONFLICT DO NOTHING".replace("%", "%%")
    )


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
