"""How quick a full inbox is, on both databases.

    python -m benchmarks.inbox --open 100000 --answered 100000 --paused 10000 --ended 100000

Every look stands beside its target; sweeps stand beside each other: with a hundredth of the open tasks, and with four
times the due ones. Exit status 1 says that a target was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases

from benchmarks.inbox.measure import (
    TARGET_MS,
    UNINDEXED,
    clock_of,
    idle_sweep,
    looks,
    page,
    run_looks,
    served,
    sweep,
    told,
)
from benchmarks.inbox.populate import fill
from kneo.clock import ManualClock
from kneo.store.engine import Store
from kneo.store.migrate import open_store

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
SLOWER = 1.5
"""Most that a look may take longer than a page of an inbox with a hundredth of it, on a machine that misses the target."""

SWEEP_RATIO = 2.0
"""Most that a sweep may take longer with a hundred times the open tasks."""


def measure(small: Store, full: Store, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Fill two databases, one with a hundredth of the other, and measure."""
    fill(small, arguments.open // 100, paused=arguments.open // 100, ended=arguments.ended // 20)
    fill(full, arguments.open, answered=arguments.answered, paused=arguments.paused, ended=arguments.ended)
    clock = clock_of(full)
    found: dict[str, object] = {"page_of_few_ms": page(small, clock), "looks_ms": looks(full, clock)}
    if not full.is_sqlite:
        found["looks_own_cpu_ms"] = looks(full, time.process_time)
    found["runs_ms"] = {"few": run_looks(small, clock), "all": run_looks(full, clock)}
    found["served_ms"] = served(full, folder, clock)
    found["told_ms"] = {"few open": told(small), "all open": told(full)}
    reach = arguments.open // 100
    due = reach // 10
    sweeps = {"few open": sweep(small, due, of=reach), "all open": sweep(full, due, of=reach)}
    sweeps["all open, four times due"] = sweep(full, 4 * due, of=reach)
    found["sweep_ms"] = sweeps
    found["idle_sweep_ms"] = {"few open": idle_sweep(small), "all open": idle_sweep(full)}
    found["sweep_ratio"] = {
        "hundred times open": round(sweeps["all open"] / sweeps["few open"], 2),
        "four times due": round(sweeps["all open, four times due"] / sweeps["all open"], 2),
    }
    return found


def missed(database: str, found: dict[str, object]) -> list[str]:
    """Say which targets were missed."""
    taken, ratio = found["looks_ms"], found["sweep_ratio"]
    assert isinstance(taken, dict)
    assert isinstance(ratio, dict)
    # A busy machine is busy for both, so what costs no more than a page of a nearly empty inbox is not late.
    allowed = max(TARGET_MS, SLOWER * float(str(found["page_of_few_ms"])))
    late = [f"{database}: {name} took {ms} ms" for name, ms in taken.items() if name not in UNINDEXED and ms >= allowed]
    if ratio["hundred times open"] >= SWEEP_RATIO:
        late.append(f"{database}: a sweep costs {ratio['hundred times open']} times as much with more open tasks")
    return late


def main() -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--open", type=int, default=100_000)
    parser.add_argument("--answered", type=int, default=100_000)
    parser.add_argument("--paused", type=int, default=10_000)
    parser.add_argument("--ended", type=int, default=100_000)
    parser.add_argument("--databases", default="sqlite,postgresql")
    arguments = parser.parse_args()
    found: dict[str, object] = {
        "load": os.getloadavg(),
        "open": arguments.open,
        "answered": arguments.answered,
        "paused": arguments.paused,
        "ended": arguments.ended,
    }
    late: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        # The tests' servers are small and never tidy up; those that people run do.
        databases.SPEED.update(shared_buffers="512MB", autovacuum="on")
        server = databases.start_server() if "postgresql" in arguments.databases else None
        try:
            for name in arguments.databases.split(","):
                urls = [
                    server.url(server.create())
                    if server and name == "postgresql"
                    else f"sqlite:///{folder}/{size}.sqlite"
                    for size in ("small", "full")
                ]
                small, full = (open_store(url, ManualClock(START)) for url in urls)
                measured = measure(small, full, arguments, Path(folder) / name)
                small.close()
                full.close()
                found[name] = measured
                late += missed(name, measured)
        finally:
            if server is not None:
                server.stop()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    for line in late:
        sys.stderr.write(f"missed: {line}\n")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
