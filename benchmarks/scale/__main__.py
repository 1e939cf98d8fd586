"""What statements cost in a PostgreSQL database of two million runs, with and without the indexes for it.

    python -m benchmarks.scale --runs 2000000

Both columns are measured in one database, one after the other. The best of three turns counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
from sqlalchemy import text

from benchmarks.scale.populate import SECONDS_APART, fill, report
from kneo.clock import ManualClock, isoformat
from kneo.records.run import RunStatus
from kneo.store import audit, metrics, prune, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store
from kneo.store.run_filter import RunFilter

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TURNS = 3
HOT_MS = 20.0
"""Most that a statement of requests and workers may take."""

INDEXES = (
    "ix_runs_bundle_updated_at",
    "ix_runs_workflow_name_updated_at",
    "ix_runs_failed",
    "ix_runs_spec_digest",
    "ix_audit_events_environment_id",
    "ix_audit_events_actor_id",
    "ix_idempotency_keys_created_at",
    "ix_outbox_run_id",
)
"""The indexes of the second column's difference."""

READABLE = frozenset({"env-7", "env-8", "env-9"})
"""The environments of a caller with access to few."""

RARE = ("ended runs and tasks, counted", "search in a day of runs")
"""Statements that no request waits for, or that read what they are told to read."""


def statements(count: int) -> Mapping[str, Callable[[Tx], object]]:
    """Return the reads by their names."""
    some = {"sort_by": "created_at", "limit": 50}
    day = isoformat(NOW - timedelta(days=1))
    filters = {
        "newest runs": RunFilter(),
        "running runs": RunFilter(statuses={RunStatus.RUNNING}),
        "runs of an environment": RunFilter(environment="env-7"),
        "runs of a bundle": RunFilter(bundle="bundle-7"),
        "runs of a workflow": RunFilter(workflow_name="workflow-7"),
        "runs with an error": RunFilter(has_error=True),
    }
    reads: dict[str, Callable[[Tx], object]] = {
        name: lambda tx, where=where: runs.list_runs(tx, where, **some)  # type: ignore[misc]
        for name, where in filters.items()
    }
    reads |= {
        f"{name}, counted": lambda tx, where=where: runs.count_runs(tx, where)  # type: ignore[misc]
        for name, where in filters.items()
        if where.bundle or where.workflow_name or where.has_error
    }
    return reads | {
        "runs of three environments": lambda tx: runs.list_runs(replace(tx, reach=READABLE), **some),
        "runs of three environments by change": lambda tx: runs.list_runs(replace(tx, reach=READABLE), limit=50),
        "runs of three environments, counted": lambda tx: runs.count_runs(replace(tx, reach=READABLE)),
        "failed runs of three environments": lambda tx: runs.list_runs(
            replace(tx, reach=READABLE), RunFilter(statuses={RunStatus.FAILED}), **some
        ),
        "tasks of three environments": lambda tx: tasks.list_tasks(replace(tx, reach=READABLE), limit=50),
        "first due run of each environment": runs.list_first_runnable,
        "search in a day of runs": lambda tx: runs.list_runs(tx, RunFilter(text="nowhere", created_after=day), **some),
        "due runs": lambda tx: runs.list_runnable(tx, 50),
        "queue": metrics.queue,
        "runs and tasks that have not ended, counted": metrics.active_by_status,
        "ended runs and tasks, counted": metrics.ended_by_status,
        "newest audit events": lambda tx: audit.events(tx, limit=50),
        "audit events of an environment": lambda tx: audit.events(tx, environment="env-none", limit=50),
        "audit events of an actor": lambda tx: audit.events(tx, actor="actor-none", limit=50),
        "owners cleared": runs.clear_owners,
        "position of a run": lambda tx: runs.progress(tx, [f"run_{count // 2:026d}"]),
    }


def batches(count: int) -> Mapping[str, Callable[[Store], object]]:
    """Return one batch of each kind of retention."""
    age = timedelta(seconds=SECONDS_APART * count / 2)

    def once() -> Callable[[], bool]:
        turns = iter((True, False))
        return lambda: next(turns)

    return {
        "500 runs deleted": lambda store: prune.prune_runs(store, age, go_on=once()),
        "500 specs looked at": lambda store: prune.prune_specs(store, age, go_on=once()),
        "1,000 idempotency keys deleted": lambda store: prune.prune_idempotency_keys(store, age, go_on=once()),
    }


def measure(store: Store, count: int) -> dict[str, float]:
    """Return the milliseconds of each statement, the best of some turns."""

    def read(work: Callable[[Tx], object]) -> None:
        with store.write() as tx:
            work(tx)

    found = {name: _best(lambda work=work: read(work)) for name, work in statements(count).items()}  # type: ignore[misc]
    return found | {name: _best(lambda work=work: work(store)) for name, work in batches(count).items()}  # type: ignore[misc]


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return round(min(taken) * 1000, 1)


def main() -> int:
    """Fill, measure, drop the indexes, measure again, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    databases.SPEED.update(shared_buffers="512MB", autovacuum="on")
    server = databases.start_server(Path(tempfile.gettempdir()))
    try:
        store = open_store(server.url(server.create()), ManualClock(NOW))
        begun = time.perf_counter()
        fill(store, arguments.runs)
        filled = time.perf_counter() - begun
        with store.read() as tx:
            size = tx.connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        report("statements with the indexes")
        after = measure(store, arguments.runs)
        with store.write() as tx:
            for index in INDEXES:
                tx.connection.execute(text(f"DROP INDEX {index}"))
        report("statements without them")
        before = measure(store, arguments.runs)
        store.close()
    finally:
        server.stop()
    late = [name for name, ms in after.items() if ms > HOT_MS and name not in RARE and name not in batches(1)]
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "bytes": size, "before": before, "after": after, "late": late}))
    else:
        print(
            f"{arguments.runs:,} runs, {size / 1e9:.1f} GB, filled in {filled:.0f} s; milliseconds without and with the indexes"
        )
        for name, ms in after.items():
            print(f"  {name:<46}{before[name]:>10}{ms:>10}{'   late' if name in late else ''}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
