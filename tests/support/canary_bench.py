"""A controller of an environment with canaries, whose runs a test starts and ends."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

from controller_bench import Bench
from sqlalchemy import update

from kneo.clock import ManualClock
from kneo.controller.stages.report import Outcome
from kneo.records.canary import Canary
from kneo.records.run import Run, RunError, RunStatus
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.store import canaries, runs
from kneo.store.engine import Store
from kneo.store.tables import runs as runs_table

PLAN: dict[str, Any] = {
    "steps": ["50%", "100%"],
    "every": "20 runs",
    "minRuns": 5,
    "stopIf": [{"metric": "failed", "worseBy": "50%"}],
}


class CanaryBench(Bench):
    """A controller whose prod serves mail 1.0.0, and which gets a canary of mail 1.1.0."""

    starter: Starter
    outcome: Outcome

    def declare(self, version: str, plan: dict[str, Any] | None = None, **spec: object) -> None:
        """Declare a version of mail with a plan, and reconcile."""
        self.repo.environment("prod", {"mail": version}, canaries={"mail": plan} if plan else {}, **spec)
        self.repo.commit(f"Release mail {version}")
        self.outcome = self.reconcile().outcomes["prod"]

    def canary(self) -> Canary:
        with self.store.read() as tx:
            found = canaries.find_latest(tx, "prod", "mail")
        assert found is not None
        return found

    def later(self, by: timedelta) -> None:
        assert isinstance(self.store.clock, ManualClock)
        self.store.clock.advance(by)

    def start(self, number: int = 1, *, reference: str = "mail", **origin: object) -> list[Run]:
        order = StartRequest(input="x", requester="ann", environment="prod", bundle=reference, origin=origin)
        found = []
        for _ in range(number):
            self.later(timedelta(milliseconds=5))
            found.append(self.starter.start(order))
        return found

    def end(self, found: Collection[Run], *failed: Run) -> None:
        """End runs a second after their start."""
        self.later(timedelta(seconds=1))
        bad = {run.id for run in failed}
        with self.store.write() as tx:
            for run in found:
                if run.id in bad:
                    runs.end(tx, run.id, RunStatus.FAILED, RunError(type="boom", message="boom"), allowed=[run.status])
            good = [run.id for run in found if run.id not in bad]
            tx.connection.execute(
                update(runs_table).where(runs_table.c.id.in_(good)).values(status="succeeded", completed_at=tx.at)
            )

    def arm(self, found: Collection[Run], version: str) -> list[Run]:
        return [run for run in found if run.release is not None and run.release.version == version]


def canary_bench(store: Store, folder: Path) -> CanaryBench:
    """Make the bench: prod serves mail 1.0.0, and 1.1.0 is signed."""
    bench = CanaryBench(store, folder)
    bench.starter = Starter(store, Spec.model_validate, pin=bench.repo.pin)
    bench.repo.bundle("mail", "1.0.0")
    bench.declare("1.0.0")
    bench.repo.bundle("mail", "1.1.0", bench.repo.other_spec())
    return bench
