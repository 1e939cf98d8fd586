"""A fleet under load with faults, for as long as wanted, and then the laws that it has to keep.

    PYTHONPATH=tests:tests/support python -m soak.run --seconds 120

``make soak SECONDS=3600 RATE=20`` runs the same: two services, three workers and two controllers on PostgreSQL, clients that
start runs, people who decide their tasks, releases that are promoted, and the faults of ``soak.faults`` in turn. Then it reads
the database and the effects' own log. Exit status 1 where a law is broken; the folder of the soak stays for you to read.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from soak.collect import Reader, reading
from soak.evidence import Evidence
from soak.faults import Faults
from soak.fleet import Fleet, remove, running
from soak.growth import growths
from soak.laws import Violation, honest, repeats, violations
from soak.load import Load
from soak.pace import Overload, PaceCheck

PROGRESS_SECONDS = 5.0
TURN_SECONDS = 0.02
SAMPLES = 400
"""Samples of each process that a soak takes, at most one a second."""

DRAIN_SECONDS = 300.0
"""Time in which the runs of a soak end after its last fault."""

CALM_SHARE, LEAST_CALM, MOST_CALM = 0.08, 1.0, 30.0
"""Calm between two faults: this share of the soak, within bounds."""

SHOWN = 20

QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


Costs: TypeAlias = "tuple[dict[str, float], int]"


class Soak:
    """One soak over a running fleet."""

    def __init__(
        self, fleet: Fleet, seconds: float, rate: float, *, faulty: bool = True, only_stops: bool = False
    ) -> None:
        self.fleet, self.seconds, self.rate, self.faulty = fleet, seconds, rate, faulty
        calm = LEAST_CALM if only_stops else min(MOST_CALM, max(LEAST_CALM, CALM_SHARE * seconds))
        self.faults = Faults(fleet, calm, only_stops=only_stops)
        self.load = Load(fleet, self.faults)
        self.bytes_per_run = 0
        self.milliseconds_per_run: dict[str, float] = {}
        self._begun = time.monotonic()
        self._next_progress = self._next_sample = 0.0

    def go(self, reader: Reader) -> Evidence:
        """Put load on the fleet with faults, let it drain, and return the evidence."""
        empty = reader.size()
        self.load.begin()
        if not self.rate:
            self.rate = self.load.calibrate(min(15.0, self.seconds / 8))
        say(f"rate: {self.rate:.1f} runs per second")
        started, ordered = time.monotonic(), 0
        keeps_up = PaceCheck(self.rate)
        before: Costs | None = None
        while (elapsed := time.monotonic() - started) < self.seconds:
            while ordered < elapsed * self.rate:
                self.load.order()
                ordered += 1
            if self.faulty:
                self.faults.turn()
            if self._watch():
                keeps_up.check(self.load.pace)
            if before is None and elapsed > self.seconds / 2:
                before = self._costs()
            time.sleep(TURN_SECONDS)
        if before is not None:
            self.milliseconds_per_run = per_run(before, self._costs())
        self._drain(reader)
        self.fleet.stop()
        evidence = reader.evidence(self.load, self.faults)
        self.bytes_per_run = round((reader.size() - empty) / max(1, len(evidence.runs)))
        return evidence

    def _costs(self) -> Costs:
        """Return the processor time by kind of process, and the number of decided runs."""
        self.fleet.measure()
        return self.fleet.costs.seconds, self.load.pace.decided

    def _watch(self) -> bool:
        """Tend the processes, and report the progress; return whether it was time for a report."""
        now = time.monotonic()
        self.fleet.tend()
        if now >= self._next_sample:
            self.fleet.measure()
            self._next_sample = now + max(1.0, self.seconds / SAMPLES)
        if now < self._next_progress:
            return False
        self._next_progress = now + PROGRESS_SECONDS
        say(self._progress())
        return True

    def _progress(self) -> str:
        on, pace = self.faults.current or "no fault", self.load.pace
        return (
            f"{time.monotonic() - self._begun:6.0f} s  {pace.started} runs started, {pace.decided} decided, {pace.waiting} waiting, "
            f"{self.load.releases} releases, {len(self.faults.done)} faults, {len(self.load.failures)} failures; {on}"
        )

    def _drain(self, reader: Reader) -> None:
        """End the fault that is on, and wait until every run has ended or waits and the queue is empty."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.faults.is_on and time.monotonic() < deadline:
            self.faults.turn()
            self._watch()
            time.sleep(TURN_SECONDS)
        self.load.finish_starting()
        while (left := reader.unfinished() + reader.jobs()) and time.monotonic() < deadline:
            self._watch()
            time.sleep(0.2)
        say(f"drained, {left} runs and jobs left")
        self.load.finish()


def per_run(before: Costs, after: Costs) -> dict[str, float]:
    """Return the milliseconds of processor time of a decided run, by kind of process: of the second half, when all are warm."""
    (used_before, decided_before), (used, decided) = before, after
    runs = max(1, decided - decided_before)
    return {
        kind: round(1000 * (seconds - used_before.get(kind, 0)) / runs, 1) for kind, seconds in sorted(used.items())
    }


def quantiles_of(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th percentile and the greatest of values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {name: round(ordered[round(last * share)], 2) for name, share in QUANTILES.items()} if ordered else {}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(soak: Soak, evidence: Evidence, found: list[Violation]) -> dict[str, object]:
    """Return the result as JSON."""
    return {
        "rate": round(soak.rate, 1),
        "late": soak.load.late,
        "bytes_per_run": soak.bytes_per_run,
        "milliseconds_per_run": soak.milliseconds_per_run,
        "restarts": soak.fleet.restarts,
        "runs": len(honest(evidence)),
        "seconds_to_the_question": quantiles_of(evidence.waits),
        "poisoned_deaths": evidence.poisoned_deaths,
        "acknowledged": sum(bool(run.run_ids) for run in evidence.started),
        "statuses": dict(Counter(run.status for run in evidence.runs)),
        "decisions": sum(task.decision is not None for task in evidence.tasks),
        "refused_decisions": sum(sent.status == 409 for sent in evidence.sent),
        "effects": len(evidence.effects),
        "repeated_by_faults": len(repeats(evidence)),
        "versions": len({promotion.version for promotion in evidence.promotions}),
        "faults": dict(Counter(fault.name for fault in evidence.faults)),
        "growth": [asdict(growth) for growth in growths(evidence.samples, evidence.warm_up)],
        "violations": [asdict(violation) for violation in found],
    }


def show(result: dict[str, object], evidence: Evidence) -> None:
    """Print a result for people."""
    for name, value in result.items():
        if name not in {"growth", "violations"}:
            print(f"{name}: {value}")
    for growth in growths(evidence.samples, evidence.warm_up):
        print(f"  {growth}")
    broken = violations(evidence)
    for violation in broken[:SHOWN]:
        print(f"VIOLATION {violation.law}: {violation.facts}")
    print(f"{len(broken)} violations")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="how long the load lasts")
    parser.add_argument(
        "--rate", type=float, default=0, help="runs per second; 0 takes half of what this machine carries"
    )
    parser.add_argument("--no-faults", action="store_true", help="measure what a run costs, without faults")
    parser.add_argument(
        "--only-stops", action="store_true", help="stop processes for 5 or 20 seconds, as the only fault"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="kneo-soak-"))
    with running(folder) as fleet, reading(fleet) as reader:
        soak = Soak(fleet, options.seconds, options.rate, faulty=not options.no_faults, only_stops=options.only_stops)
        try:
            evidence = soak.go(reader)
        except Overload as error:
            say(f"{error}\nlogs: {folder}")
            return 1
    found = violations(evidence)
    result = report(soak, evidence, found)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result, evidence)
    if found:
        evidence.save(folder / "evidence.json")
        say(f"evidence and logs: {folder}")
        return 1
    remove(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
