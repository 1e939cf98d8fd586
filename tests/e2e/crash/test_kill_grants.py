"""Kill -9 at the writes of runs whose calls a standing grant covers: each use is one decision, one receipt and one effect.

Several runs share one grant with a limit by uses and one by total. A sample of the writes here; all of them with ``make crash``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from e2e.crash.test_kill_agents import PATIENCE_SECONDS, Processes
from grant_house import RULE, GrantHouse, grant_house
from installation_key import find_key
from kneo_process import eventually

from kneo.clock import ManualClock, SystemClock
from kneo.records.grant import Grant
from kneo.records.run import Run, RunStatus
from kneo.records.task import TaskStatus
from kneo.store import grants as rows
from kneo.store import receipts, tasks
from kneo.store.migrate import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.both_databases]

SAMPLED = tuple((when, number) for number in (1, 2, 3) for when in ("before", "after"))


@pytest.fixture
def house(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrantHouse]:
    store = open_store(migrated_url, ManualClock(SystemClock().now()), find_key)
    with grant_house(store, tmp_path, monkeypatch) as made:
        made.release(made.spec(on_interrupted="repeat"), grants=[{**RULE, "spotChecks": 0}])
        yield made
    store.close()


def go_through(house: GrantHouse, url: str, run: Run, when: str, die_at: int) -> int:
    """Run to the end or to a question with a process that dies at a write, and another one that continues."""
    processes = Processes(house, url, run, house.server)
    try:
        processes.start(when, die_at)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while house.look(run).status is RunStatus.RUNNING or not (house.open(run) or house.look(run).completed_at):
            assert time.monotonic() < deadline, (when, die_at, house.look(run))
            processes.reap()
            if not processes.alive:
                processes.start()
            time.sleep(0.02)
        processes.reap()
    finally:
        processes.stop()
    return processes.killed


def test_limits_hold_where_processes_are_killed(
    house: GrantHouse, migrated_url: str, request: pytest.FixtureRequest
) -> None:
    points = list(SAMPLED)
    if request.config.getoption("--every-write", default=False):
        points = [(when, number) for when in ("before", "after") for number in range(1, 10)]
    grant = house.active(uses=len(points) - 1, total={"amount": 30 * len(points) - 40})
    runs, killed = [], 0
    for when, number in points:
        runs.append(house.refunds(30, drive=False))
        killed += go_through(house, migrated_url, runs[-1], when, number)
    assert killed > 2
    used = check_laws(house, grant, runs)
    assert used == len(points) - 2, "the total allows two runs less"
    effects = {line.split()[1] for line in house.notes()}
    assert len(effects) == used, "one effect for each use, by its idempotency key"
    assert sum(run.status is RunStatus.SUCCEEDED for run in map(house.look, runs)) == used


WORKERS, RUNS, KILLS = 3, 50, 9


def test_limits_hold_where_three_workers_are_killed_at_random(house: GrantHouse, migrated_url: str) -> None:
    chance = random.Random(20261124)
    grant = house.active(uses=20, total={"amount": 333})
    amounts = chance.choices(range(5, 31), k=RUNS)
    runs = [house.refunds(amount, drive=False) for amount in amounts]
    asked = {run.id: amount for run, amount in zip(runs, amounts, strict=True)}
    processes = Processes(house, migrated_url, house.refunds(200), house.server)

    def work() -> bool:
        processes.reap()
        while len(processes.alive) < WORKERS:
            die_at = chance.randint(3, 30) if processes.killed < KILLS else 0
            processes.start(chance.choice(["before", "after"]), die_at)
        return all(house.look(run).status is not RunStatus.RUNNING for run in runs)

    try:
        eventually(work, seconds=PATIENCE_SECONDS)
    finally:
        processes.stop()
    assert processes.killed >= KILLS
    used = check_laws(house, grant, runs)
    left = 333 - Decimal(house.grant(grant).totals["amount"])
    assert used <= 20
    assert left >= 0
    ended = [house.look(run) for run in runs]
    assert used == 20 or all(asked[run.id] > left for run in ended if run.status is RunStatus.PAUSED)
    refunded = {line.split()[1]: Decimal(line.split()[0]) for line in house.notes()}
    # A run that lost three workers ends: its use counts, and its refund may be missing.
    lost = sum(run.status is RunStatus.FAILED for run in ended)
    assert used - lost <= len(refunded) <= used
    assert lost or sum(refunded.values()) == 333 - left


def check_laws(house: GrantHouse, grant: Grant, runs: list[Run]) -> int:
    """Check that each use is one decision with one receipt, and that the counters are those of the uses; return their number."""
    after = house.grant(grant)
    with house.store.read() as tx:
        used = rows.list_uses(tx, grant.id)
        found = [receipt for run in runs for receipt in receipts.of_run(tx, run.id)]
        decided = [task for run in runs for task in tasks.of_run(tx, run.id, TaskStatus) if task.decision is not None]
    assert [use.number for use in used] == list(range(1, after.uses + 1))
    assert after.uses == len(used) == len(found) == len(decided)
    assert {use.task_id for use in used} == {receipt.task_id for receipt in found} == {task.id for task in decided}
    assert Decimal(after.totals["amount"]) == sum(Decimal(use.amounts["amount"]) for use in used)
    return after.uses
