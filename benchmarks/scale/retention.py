"""What retention costs on PostgreSQL: old runs deleted in batches, and old trace events dropped with a partition.

    python -m benchmarks.scale.retention --runs 20000

Half of the runs are old. Each has four trace events, next to the rows of ``populate``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
from sqlalchemy import text

from benchmarks.scale.populate import SECONDS_APART, fill
from kneo.clock import ManualClock
from kneo.store import prune
from kneo.store.engine import Store
from kneo.store.migrate import open_store

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENTS = 4
TABLES = ("runs", "steps", "checkpoints", "trace_events", "tasks", "outbox")

TRACE = """
INSERT INTO {table}
SELECT 'run_' || lpad((n / :events)::text, 26, '0'), n % :events, 'evt_' || n, 'step_completed', 'a',
       '2026-01-01T00:00:00.000000+00:00', '{{"output": "An output of some length."}}'
FROM generate_series(CAST(:events AS integer), CAST(:last AS integer)) n
"""

PARTITIONS = """
CREATE TABLE trace_parts (LIKE trace_events) PARTITION BY RANGE (run_id);
CREATE TABLE trace_old PARTITION OF trace_parts FOR VALUES FROM (MINVALUE) TO ('{middle}');
CREATE TABLE trace_new PARTITION OF trace_parts FOR VALUES FROM ('{middle}') TO (MAXVALUE);
ALTER TABLE trace_parts ADD PRIMARY KEY (run_id, sequence)
"""


def execute(store: Store, statement: str, **values: object) -> float:
    """Execute a statement as a transaction; return its seconds."""
    begun = time.perf_counter()
    with store.write() as tx:
        tx.connection.execute(text(statement), values)
    return time.perf_counter() - begun


def count_rows(store: Store) -> int:
    with store.read() as tx:
        return sum(tx.connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in TABLES)  # noqa: S608


def main() -> int:
    """Fill, delete in batches, drop a partition of the same trace events, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20_000)
    count = parser.parse_args().runs
    databases.SPEED.update(shared_buffers="512MB", autovacuum="on")
    server = databases.start_server()
    try:
        store = open_store(server.url(server.create()), ManualClock(NOW))
        fill(store, count)
        last = count * EVENTS + EVENTS - 1
        plain = execute(store, TRACE.format(table="trace_events"), events=EVENTS, last=last)
        for statement in PARTITIONS.format(middle=f"run_{count // 2:026d}").split(";"):
            execute(store, statement)
        parted = execute(store, TRACE.format(table="trace_parts"), events=EVENTS, last=last)
        before, marks = count_rows(store), [time.perf_counter()]

        def go_on() -> bool:
            marks.append(time.perf_counter())
            return True

        runs = prune.prune_runs(store, timedelta(seconds=SECONDS_APART * count / 2), go_on=go_on)
        batches = [end - begin for begin, end in itertools.pairwise(marks[1:])]
        rows = before - count_rows(store)
        vacuum = time.perf_counter()
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        vacuum = time.perf_counter() - vacuum
        dropped = execute(store, "DROP TABLE trace_old")
        store.close()
    finally:
        server.stop()
    seconds = sum(batches)
    print(f"{runs:,} runs with {rows:,} rows deleted in {seconds:.1f} s: {runs / seconds:,.0f} runs/s")
    print(
        f"a batch of {prune.BATCH} runs: median {statistics.median(batches) * 1000:.0f} ms, longest {max(batches) * 1000:.0f} ms"
    )
    print(f"vacuum afterwards: {vacuum:.1f} s")
    print(f"a partition of {count * EVENTS // 2:,} trace events dropped in {dropped * 1000:.0f} ms")
    print(f"{count * EVENTS:,} trace events inserted: {plain:.1f} s plain, {parted:.1f} s partitioned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
