"""What evidence and canaries cost, on SQLite in one process.

    python -m benchmarks.canaries
    python -m benchmarks.canaries --only starts,reconcile

Starts and reconciliations are measured in pairs: one with, one without, in turn, so that a busy machine is busy for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from canary_bench import PLAN, CanaryBench, canary_bench
from installation_key import find_key

from benchmarks.canaries.trials import trials_a_second
from kneo.clock import ManualClock, SystemClock, monotonic
from kneo.controller.canary import settle_all
from kneo.runtime.engine.start import StartRequest
from kneo.store import canaries
from kneo.store.migrate import open_store

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


def starts(folder: Path, repeats: int) -> Figures:
    """Measure the start of a run of a bundle with a canary, and of one without."""
    plain, with_canary = _bench(folder, "plain"), _bench(folder, "canary")
    with_canary.declare("1.1.0", {**PLAN, "steps": ["5%", "100%"], "every": "1000000 runs"})
    order = StartRequest(input="x", requester="ann", environment="prod", bundle="mail")
    pairs = [tuple(_milliseconds(lambda: b.starter.start(order)) for b in (plain, with_canary)) for _ in range(repeats)]  # noqa: B023 - called at once
    before, after = (statistics.median(column) for column in zip(*pairs[repeats // 10 :], strict=True))
    return {"start_ms": before, "start_with_canary_ms": after, "start_ratio": after / before}


def reconcile(folder: Path, repeats: int) -> Figures:
    """Measure a reconciliation that evaluates an environment with evidence rules: without and with 1,000 statements about its bundle."""
    benches = []
    for name, statements in (("none", 0), ("thousand", 1_000)):
        bench = _bench(folder, name)
        bench.repo.person("eva", "evaluator")
        bench.declare("1.0.0", evidence=[RULE])
        path = bench.repo.attest("mail", "1.1.0", "eva", passed=30, failed=10)
        now = bench.store.clock.now()
        for number in range(1, statements):
            bench.repo.attest("mail", "1.1.0", "eva", passed=30, failed=10, issued_at=now - timedelta(seconds=number))
        bench.declare("1.1.0", evidence=[RULE])
        assert path.is_file()
        benches.append(bench)

    def once(bench: CanaryBench, number: int) -> float:
        # Other rules, so that the environment is evaluated.
        bench.repo.environment("prod", {"mail": "1.1.0"}, evidence=[{**RULE, "maxAge": f"{number + 31}d"}])
        bench.repo.commit(f"Touch {number}")
        reconciler, lease = bench.reconciler(), bench.lease()
        return _milliseconds(lambda: reconciler.reconcile(lease))

    pairs = [tuple(once(bench, number) for bench in benches) for number in range(repeats)]
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"reconcile_ms": before, "reconcile_with_1000_statements_ms": after, "reconcile_added_ms": after - before}


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
REPEATS = {"starts": 500, "reconcile": 15, "settle": 200, "trials": 100}


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
