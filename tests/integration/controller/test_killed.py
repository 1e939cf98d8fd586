"""A controller killed at its writes, and one that slept past its lease: the registry is the old or the new one."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from processes import start_python

from controller.outcome import Done
from kneo.clock import ManualClock
from kneo.errors import Transient
from kneo.store import audit, requests
from kneo.store.engine import Store

CHILD = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import event

from controller.apply import Lease
from controller.reconcile import Reconciler
from controller.source.mirror import Mirror
from kneo.clock import SystemClock
from kneo.store import requests
from kneo.store.migrate import open_store

url, folder, mirrors, pin, kill_at = sys.argv[1:]
store = open_store(url, SystemClock())
with store.write() as tx:
    requests.drop_lease(tx, "controller", "me")
    fence = requests.take_lease(tx, "controller", "child", timedelta(minutes=5))
count = 0

def maybe_die(connection, cursor, statement, parameters, context, executemany):
    global count
    if statement.lstrip().split(None, 1)[0].upper() in {"INSERT", "UPDATE", "DELETE"}:
        count += 1
        if count == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

event.listen(store.engine, "after_cursor_execute", maybe_die)
Reconciler(store, Mirror(folder, "main", Path(mirrors)), pin).reconcile(Lease("controller", "child", fence))
print(count)
"""

STEP = 5
"""Between two writes at which the controller is killed."""


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def _commit(bench: Bench, version: str) -> None:
    for name in ("bank", "mail"):
        bench.repo.bundle(name, version)
    bench.repo.environment("prod", {"bank": version, "mail": version}, atomic=True)
    bench.repo.commit(f"Release {version}")


def test_killed_at_a_write_it_left_the_old_registry_or_the_new_one(bench: Bench, migrated_url: str) -> None:
    _commit(bench, "1.0.0")
    bench.reconcile()
    before, kill_at = "1.0.0", 1
    while True:
        version = f"1.{kill_at}.0"
        _commit(bench, version)
        child = start_python(
            CHILD, migrated_url, str(bench.repo.folder), str(bench.folder / "mirrors"), bench.repo.pin, str(kill_at)
        )
        output, errors = child.communicate(timeout=60)
        assert child.returncode in {0, -signal.SIGKILL}, errors
        assert bench.served() in ({"bank": before, "mail": before}, {"bank": version, "mail": version})
        audit.seal(bench.store)
        assert audit.verify(bench.store).valid
        bench.take_over("child")
        assert isinstance(bench.reconcile().outcomes["prod"], Done)
        assert bench.served() == {"bank": version, "mail": version}
        if child.returncode == 0:
            assert int(output) < kill_at
            return
        before, kill_at = version, kill_at + STEP


def test_one_that_slept_past_its_lease_writes_nothing_more(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    sleeper, lease = bench.reconciler(), bench.lease("sleeper")
    assert isinstance(bench.store.clock, ManualClock)
    bench.store.clock.advance(timedelta(minutes=6))
    other = bench.lease("other")
    assert other.fence > lease.fence
    bench.reconciler().reconcile(other)
    rows = bench.rows()
    with pytest.raises(Transient) as caught:
        sleeper.reconcile(lease)
    assert caught.value.code == "LeaseLost"
    assert bench.rows() == rows
    assert len(bench.events("release.promoted")) == 1
    with bench.store.read() as tx:
        assert requests.lease_holder(tx, "controller") == "other"
