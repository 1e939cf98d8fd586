"""A controller killed at its writes, and one that slept past its lease: the registry is the old or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from installation_key import SERVICE_KEY, find_key
from processes import start_python
from sqlalchemy import select, update

from kneo.clock import ManualClock, SystemClock
from kneo.controller.stages.report import Ready
from kneo.errors import Transient
from kneo.store import audit, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import metadata

pytestmark = [pytest.mark.timeout(600), pytest.mark.both_databases]

CHILD = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import event

from kneo.store.requests import Lease
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.clock import SystemClock
from kneo.errors import Transient
from kneo.store import requests
from kneo.store.migrate import open_store
from kneo.store.writer import ANY_COMMIT
from kneo.trust.keys import PrivateKey

url, folder, mirrors, pin, how, at, key = sys.argv[1:]
store = open_store(url, SystemClock(), lambda: PrivateKey.load(key.encode()))
with store.write() as tx:
    requests.drop_lease(tx, "controller", "me")
    fence = requests.take_lease(tx, "controller", "child", timedelta(minutes=5))
count = 0

def moment(cursor=None):
    global count
    count += 1
    if count == int(at):
        if cursor is not None and how == "SIGSTOP":
            # Whoever stops here holds locks: the database lets it, but here not for long.
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 50")
        os.kill(os.getpid(), getattr(signal, how))

def after_write(connection, cursor, statement, parameters, context, executemany):
    if statement.lstrip().split(None, 1)[0].upper() in {"INSERT", "UPDATE", "DELETE"}:
        moment(cursor)

event.listen(store.engine, "after_cursor_execute", after_write)
try:
    with store.notifier.listen(ANY_COMMIT, lambda _: moment()):
        reconciler = Reconciler(store, Mirror(folder, "main", Path(mirrors)), pin, channels=("webhook",))
        reconciler.reconcile(Lease("controller", "child", fence))
    print("done", count)
except Transient as error:
    print(error.code, count)
"""

STEP = 13
"""Between two moments at which the controller is killed or stopped, unless every one is asked for: after each write, and
after each transaction."""


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def _commit(bench: Bench, version: str) -> None:
    for name in ("bank", "mail"):
        bench.repo.bundle(name, version)
    bench.repo.environment("prod", {"bank": version, "mail": version}, atomic=True)
    bench.repo.commit(f"Release {version}")


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    return 1 if request.config.getoption("--every-write", default=False) else STEP


class Children:
    """Processes that work on the registry of a bench until something happens to them."""

    def __init__(self, bench: Bench, url: str) -> None:
        bench.channels = ("webhook",)
        self.bench, self.url = bench, url
        self.started: list[subprocess.Popen[str]] = []

    def start(self, how: str, at: int) -> subprocess.Popen[str]:
        """Start one that gets a signal at so many writes."""
        repo = self.bench.repo
        mirrors = str(self.bench.folder / "mirrors")
        self.started.append(
            start_python(
                CHILD, self.url, str(repo.folder), mirrors, repo.pin, how, str(at), SERVICE_KEY.dump().decode()
            )
        )
        return self.started[-1]

    def stop(self) -> None:
        for child in self.started:
            if child.returncode is None:
                child.kill()
                child.communicate()


@pytest.fixture
def children(bench: Bench, migrated_url: str) -> Iterator[Children]:
    found = Children(bench, migrated_url)
    yield found
    found.stop()


def test_killed_at_a_write_it_left_the_old_registry_or_the_new_one(bench: Bench, children: Children, step: int) -> None:
    _commit(bench, "1.0.0")
    bench.reconcile()
    before, kill_at = "1.0.0", 1
    while True:
        version = f"1.{kill_at}.0"
        _commit(bench, version)
        child = children.start("SIGKILL", kill_at)
        output, errors = child.communicate(timeout=240)
        assert child.returncode in {0, -signal.SIGKILL}, errors
        assert bench.served() in ({"bank": before, "mail": before}, {"bank": version, "mail": version})
        _check_log(bench)
        bench.take_over("child")
        assert isinstance(bench.reconcile().outcomes["prod"], Ready)
        assert bench.served() == {"bank": version, "mail": version}
        if child.returncode == 0:
            assert int(output.split()[1]) < kill_at
            return
        before, kill_at = version, kill_at + step


def _check_log(bench: Bench) -> None:
    """What was done is in the log, which holds together, and is to be told, each thing once."""
    audit.seal(bench.store)
    assert audit.verify(bench.store).valid
    done = [(event["bundle"], event["version"]) for event in bench.events("release.promoted")]
    with bench.store.read() as tx:
        told = [row.payload for row in tx.connection.execute(select(metadata.tables["outbox"]))]
    assert sorted((item["bundle"], item["version"]) for item in told) == sorted(done)
    assert len(set(done)) == len(done)


@pytest.fixture
def rivals(postgres_url: str, tmp_path: Path) -> Iterator[Children]:
    """Processes on the database of a bench, which follows it in a process of its own."""
    opened = open_store(postgres_url, ManualClock(SystemClock().now()), find_key)
    found = Children(Bench(opened, tmp_path), postgres_url)
    yield found
    found.stop()
    opened.close()


def test_stopped_at_a_write_past_its_lease_it_did_all_or_nothing_and_nothing_late(rivals: Children, step: int) -> None:
    """Two processes on one database: one is stopped, loses its lease, and goes on when the other has done its work."""
    bench = rivals.bench
    _commit(bench, "1.0.0")
    bench.reconcile()
    stop_at, versions = 1, ["1.0.0"]
    while True:
        versions.append(f"1.{stop_at}.0")
        _commit(bench, versions[-1])
        child = rivals.start("SIGSTOP", stop_at)
        if not _stopped(child):
            word, count = child.communicate(timeout=240)[0].split()
            assert (word, int(count) < stop_at) == ("done", True)
            break
        _expire(bench, "child")
        assert isinstance(bench.reconcile().outcomes["prod"], Ready)
        rows = bench.rows()
        child.send_signal(signal.SIGCONT)
        output, errors = child.communicate(timeout=240)
        assert output.split()[:1] in (["LeaseLost"], ["store_unavailable"], ["done"]), errors
        assert bench.rows() == rows
        bench.drop_lease()
        stop_at += step
    assert bench.served() == dict.fromkeys(("bank", "mail"), versions[-1])
    promoted = [(event["bundle"], event["version"]) for event in bench.events("release.promoted")]
    assert sorted(promoted) == sorted((name, version) for name in ("bank", "mail") for version in versions)
    _check_log(bench)


def _stopped(child: subprocess.Popen[str]) -> bool:
    """Wait until a process has stopped itself or has ended; say which."""
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    child.returncode = os.waitstatus_to_exitcode(status)
    return False


def _expire(bench: Bench, owner: str) -> None:
    """Let somebody's lease run out, as time would; waits for a transaction in which its row is locked."""
    leases = metadata.tables["leases"]
    with bench.store.write() as tx:
        tx.connection.execute(update(leases).where(leases.c.owner == owner).values(until=tx.at))


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
