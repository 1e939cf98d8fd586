"""What evidence and canaries cost, on SQLite in one process.

    python -m benchmarks.canaries
    python -m benchmarks.canaries --only starts,reconcile

Starts and reconciliations are measured in pairs: one with, one without, in turn, so that a busy machine is busy for both. Besides the time
on the clock they have the processor time of this process and the statements, which a busy machine changes little or not at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from canary_bench import PLAN, CanaryBench, canary_bench
from installation_key import find_key
from sqlalchemy import event, func, select

from benchmarks.canaries.trials import trials_a_second
from kneo.clock import ManualClock, SystemClock, monotonic
from kneo.controller.canary import settle_all
from kneo.controller.reconcile import Reconciler
from kneo.controller.stages.load import MAX_EVIDENCE_FILES
from kneo.runtime.engine.start import StartRequest
from kneo.store import canaries
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import Lease
from kneo.store.tables import attestations

Figures = Mapping[str, float]

RULE = {
    "name": "support",
    "suite": {"name": "support", "digest": "sha256:" + "5" * 64},
    "signers": {"role": "evaluator"},
    "require": [{"metric": "pass_rate", "atLeast": 0.95}],
}


def _bench(folder: Path, name: str) -> CanaryBench:
    place = folder / name
    place.mkdir()
    return canary_bench(
        open_store(f"sqlite:///{place / 'kneo.sqlite'}", ManualClock(SystemClock().now()), find_key), place
    )


def _milliseconds(work: Callable[[], object]) -> float:
    began = monotonic()
    work()
    return (monotonic() - began) * 1_000


class Cost(NamedTuple):
    """What a call costs: milliseconds on the clock and of the processor, and statements."""

    ms: float
    cpu_ms: float
    statements: int


def _cost(store: Store, work: Callable[[], object]) -> Cost:
    count = 0

    def listen(*_: object) -> None:
        nonlocal count
        count += 1

    event.listen(store.engine, "before_cursor_execute", listen)
    began = time.process_time()
    elapsed = _milliseconds(work)
    used = time.process_time() - began
    event.remove(store.engine, "before_cursor_execute", listen)
    return Cost(elapsed, used * 1_000, count)


def _figures(name: str, costs: Sequence[Cost]) -> Figures:
    """Return the medians of times, and the mean of statements."""
    ms, cpu, count = zip(*costs, strict=True)
    return {
        f"{name}_ms": statistics.median(ms),
        f"{name}_cpu_ms": statistics.median(cpu),
        f"{name}_statements": statistics.mean(count),
    }


def starts(folder: Path, repeats: int) -> Figures:
    """Measure the start of a run of a bundle with a canary, and of one without."""
    benches = _bench(folder, "plain"), _bench(folder, "canary")
    benches[1].declare("1.1.0", {**PLAN, "steps": ["5%", "100%"], "every": "1000000 runs"})
    order = StartRequest(input="x", requester="ann", environment="prod", bundle="mail")
    pairs = [tuple(_cost(b.store, lambda: b.starter.start(order)) for b in benches) for _ in range(repeats)]  # noqa: B023 - called at once
    before, after = zip(*pairs[repeats // 10 :], strict=True)
    found = {**_figures("start", before), **_figures("start_with_canary", after)}
    ratios = {
        f"start_{unit}_ratio": found[f"start_with_canary_{unit}"] / found[f"start_{unit}"] for unit in ("ms", "cpu_ms")
    }
    return {**found, **ratios}


STATEMENTS = 1_000


def reconcile(folder: Path, repeats: int) -> Figures:
    """Measure a reconciliation that evaluates an environment with evidence rules: without and with 1,000 statements about its bundle."""
    none, thousand = (_evidence_bench(folder, name) for name in ("none", "thousand"))
    now = thousand.store.clock.now()
    for first in range(0, STATEMENTS, MAX_EVIDENCE_FILES):
        issued = [now - timedelta(seconds=number) for number in range(first, first + MAX_EVIDENCE_FILES)]
        paths = [thousand.repo.attest("mail", "1.1.0", "eva", passed=30, failed=10, issued_at=at) for at in issued]
        thousand.declare("1.1.0", evidence=[RULE])
        for path in paths:
            path.unlink()
    with thousand.store.read() as tx:
        assert tx.connection.execute(select(func.count()).select_from(attestations)).scalar_one() == STATEMENTS
    none.repo.attest("mail", "1.1.0", "eva", passed=30, failed=10)
    reconcilers = [(bench, bench.reconciler(), bench.lease()) for bench in (none, thousand)]

    def once(bench: CanaryBench, reconciler: Reconciler, lease: Lease, number: int) -> Cost:
        # Other rules, so that the environment is evaluated.
        bench.repo.environment("prod", {"mail": "1.1.0"}, evidence=[{**RULE, "maxAge": f"{number + 31}d"}])
        bench.repo.commit(f"Touch {number}")
        return _cost(bench.store, lambda: reconciler.reconcile(lease))

    pairs = [tuple(once(*each, number) for each in reconcilers) for number in range(repeats)]
    before, after = zip(*pairs[2:], strict=True)
    found = {**_figures("reconcile", before), **_figures("reconcile_with_1000_statements", after)}
    added = {
        f"reconcile_added_{unit}": found[f"reconcile_with_1000_statements_{unit}"] - found[f"reconcile_{unit}"]
        for unit in ("ms", "cpu_ms")
    }
    return {**found, **added}


def _evidence_bench(folder: Path, name: str) -> CanaryBench:
    bench = _bench(folder, name)
    bench.repo.person("eva", "evaluator")
    bench.declare("1.0.0", evidence=[RULE])
    return bench


def settle(folder: Path, repeats: int) -> Figures:
    """Measure the settlement of 10,000 counted runs that have all ended since the last one."""
    bench = _bench(folder, "settle")
    bench.declare("1.1.0", {**PLAN, "every": "1000000 runs"})
    found = bench.start(10_000)
    with bench.store.read() as tx:
        live = canaries.find_live(tx, "prod", "mail")
        assert live is not None
        counted = len(canaries.list_runs(tx, live))
    bench.end(found, *found[::50])
    lease = bench.lease()
    first = _milliseconds(lambda: settle_all(bench.store, lease))
    again = [_milliseconds(lambda: settle_all(bench.store, lease)) for _ in range(max(1, repeats // 50))]
    return {"settled_rows": counted, "settle_first_ms": first, "settle_again_ms": statistics.median(again)}


def trials(folder: Path, repeats: int) -> Figures:
    """Measure scripted trials, one after the other."""
    return {"trials_a_second": trials_a_second(folder, repeats)}


MEASURES = {"starts": starts, "reconcile": reconcile, "settle": settle, "trials": trials}
REPEATS = {"starts": 500, "reconcile": 25, "settle": 200, "trials": 100}


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(MEASURES), help="which of them, by comma")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for wanted in arguments.only.split(","):
            folder = Path(name) / wanted
            folder.mkdir()
            found |= MEASURES[wanted](folder, REPEATS[wanted])
    sys.stdout.write(json.dumps({key: round(value, 3) for key, value in found.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
