"""A controller killed at each write of a canary: begun, stepped, rolled back. The registry is the old or the new one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from canary_bench import PLAN, CanaryBench, canary_bench
from installation_key import SERVICE_KEY
from processes import start_python

from kneo.clock import isoformat
from kneo.errors import Transient
from kneo.records.canary import CanaryState
from kneo.store import audit
from kneo.store.engine import Store

pytestmark = [pytest.mark.timeout(600), pytest.mark.both_databases]

CHILD = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import event

from kneo.clock import ManualClock, parse_time
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.errors import Transient
from kneo.store import requests
from kneo.store.migrate import open_store
from kneo.store.requests import Lease
from kneo.store.writer import ANY_COMMIT
from kneo.trust.keys import PrivateKey

url, folder, mirrors, pin, at, key, what, now = sys.argv[1:]
store = open_store(url, ManualClock(parse_time(now)), lambda: PrivateKey.load(key.encode()))
with store.write() as tx:
    requests.drop_lease(tx, "controller", "me")
    fence = requests.take_lease(tx, "controller", "child", timedelta(minutes=5))
count = 0

def moment():
    global count
    count += 1
    if count == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

def after_write(connection, cursor, statement, parameters, context, executemany):
    if statement.lstrip().split(None, 1)[0].upper() in {"INSERT", "UPDATE", "DELETE"}:
        moment()

event.listen(store.engine, "after_cursor_execute", after_write)
with store.notifier.listen(ANY_COMMIT, lambda _: moment()):
    reconciler = Reconciler(store, Mirror(folder, "main", Path(mirrors)), pin)
    lease = Lease("controller", "child", fence)
    reconciler.settle_canaries(lease) if what == "settle" else reconciler.reconcile(lease)
print("done", count)
"""

STEP = 5
"""Between two writes at which the controller is killed, unless every one is asked for."""


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> CanaryBench:
    return canary_bench(store, tmp_path)


@pytest.fixture
def kill(bench: CanaryBench, migrated_url: str) -> Callable[[int, str], bool]:
    """Let a process reconcile or settle, killed at a write; return whether it was done before."""

    def run(at: int, what: str) -> bool:
        folder, mirrors = str(bench.repo.folder), str(bench.folder / "mirrors")
        key = SERVICE_KEY.dump().decode()
        child = start_python(
            CHILD, migrated_url, folder, mirrors, bench.repo.pin, str(at), key, what, isoformat(bench.store.clock.now())
        )
        _, errors = child.communicate(timeout=240)
        assert child.returncode in {0, -signal.SIGKILL}, errors
        bench.take_over("child")
        return child.returncode == 0

    return run


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    return 1 if request.config.getoption("--every-write", default=False) else STEP


def _whole(bench: CanaryBench) -> None:
    """Each step of the newest canary has one event, and its share is that of its step, or nothing."""
    audit.seal(bench.store)
    assert audit.verify(bench.store).valid
    canary = bench.canary()
    mine = [each for each in bench.events("canary.advanced") if each["canary"] == canary.id]
    assert sorted(each["step"] for each in mine) == list(range(2, canary.step + 1))
    assert sum(each["canary"] == canary.id for each in bench.events("canary.began")) == 1
    shares = {1: 0.5, 2: 0.75, 3: 1.0}
    assert canary.share in {0.0, shares[canary.step]}


def test_killed_at_each_write_of_a_canary(bench: CanaryBench, kill: Callable[[int, str], bool], step: int) -> None:
    plan: dict[str, Any] = {**PLAN, "steps": ["50%", "75%", "100%"], "every": "6 runs", "minRuns": 1}
    before, at = "1.0.0", 1
    while True:
        version = f"2.{at}.0"
        bench.repo.bundle("mail", version)
        bench.repo.environment("prod", {"mail": version}, canaries={"mail": plan})
        bench.repo.commit(f"Release {version}")
        done = kill(at, "reconcile")
        bench.reconcile()
        assert bench.canary().version == version
        _whole(bench)
        for _ in range(2):
            assert bench.served() == {"mail": before}
            bench.end(bench.start(12))
            done &= kill(at, "reconcile")
            bench.reconcile()
            _whole(bench)
        assert (bench.served(), bench.canary().state) == ({"mail": version}, CanaryState.PASSED)
        if done:
            return
        before, at = version, at + step


def test_killed_at_each_write_of_a_rollback(bench: CanaryBench, kill: Callable[[int, str], bool]) -> None:
    plan: dict[str, Any] = {**PLAN, "every": "500 runs"}
    at = 1
    while True:
        version = f"2.{at}.0"
        bench.repo.bundle("mail", version)
        bench.declare(version, plan)
        found = bench.start(50)
        bench.end(found, *bench.arm(found, version))
        done = kill(at, "settle")
        canary = bench.canary()
        rolled_back = [each for each in bench.events("canary.rolled_back") if each["canary"] == canary.id]
        assert (canary.state is CanaryState.ROLLED_BACK, canary.share == 0.0) == (bool(rolled_back), bool(rolled_back))
        bench.reconcile()
        assert bench.canary().state is CanaryState.ROLLED_BACK
        assert len([e for e in bench.events("canary.rolled_back") if e["canary"] == canary.id]) == 1
        assert bench.served() == {"mail": "1.0.0"}
        if done:
            return
        at += 1


def test_two_controllers_make_one_step(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    bench.end(bench.start(30))
    bench.drop_lease()
    first, lease = bench.reconciler(), bench.lease("first")
    bench.later(timedelta(minutes=6))
    bench.reconciler().reconcile(bench.lease("second"))
    with pytest.raises(Transient) as caught:
        first.reconcile(lease)
    assert caught.value.code == "LeaseLost"
    assert len(bench.events("canary.advanced")) == 1
