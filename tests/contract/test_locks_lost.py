"""Locks of processes whose server ends their session: the loss is noticed, and the lock is taken again by exactly one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from builders import build_run
from databases import Server
from kneo_process import Machine, eventually
from sqlalchemy import text

from kneo.background import background
from kneo.clock import ManualClock, SystemClock, isoformat
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import LockedWorker
from kneo.runtime.engine.timers import TIMERS_LOCK, run_timers
from kneo.store import locks, runs
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.migrate import open_store


@pytest.fixture
def name(postgres_server: Server) -> Iterator[str]:
    made = postgres_server.create()
    yield made
    postgres_server.drop(made)


@pytest.fixture
def pg(postgres_server: Server, name: str) -> Iterator[Store]:
    opened = open_store(postgres_server.url(name), SystemClock())
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "CHECK_SECONDS", 0.0)


def holders(store: Store, lock: str) -> list[int]:
    """Sessions that hold a lock, asked on a connection of its own."""
    with store.engine.connect() as connection:
        statement = text(
            "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND l.granted "
            "AND d.datname = current_database() AND l.objid = ((hashtext(:n)::bigint) & 4294967295)"
        )
        return sorted(connection.execute(statement, {"n": f"kneo:{lock}"}).scalars())


def end_sessions(store: Store, lock: str) -> None:
    """End every session that holds a lock, as a server does that restarts, and wait until its locks are released."""
    for pid in holders(store, lock):
        with store.engine.connect() as connection:
            assert connection.execute(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid}).scalar_one()


def test_a_lock_says_whether_it_is_held(store: Store) -> None:
    with store.exclusive("steps") as first, store.exclusive("steps") as second:
        assert (first.held(), second.held()) == (True, False)
        assert (first.renew(), second.renew()) == (True, False)
    with store.exclusive("steps") as again:
        assert again.held()


def test_a_lock_whose_session_was_ended_is_not_held_and_giving_it_back_is_no_error(pg: Store) -> None:
    with pg.exclusive("steps") as lock:
        end_sessions(pg, "steps")
        assert not lock.held()
        assert not lock
    assert holders(pg, "steps") == []


def test_a_lock_that_is_given_back_after_its_session_ended_unnoticed_is_no_error(pg: Store) -> None:
    with pg.exclusive("steps") as lock:
        assert lock
        end_sessions(pg, "steps")
    assert holders(pg, "steps") == []


def test_a_lost_lock_is_taken_again_unless_somebody_else_has_it(pg: Store) -> None:
    with pg.shared(WORKER_LOCK) as lock:
        end_sessions(pg, WORKER_LOCK)
        with pg.exclusive(WORKER_LOCK) as other:
            assert other
            assert not lock.held()
            assert not lock.renew()
        assert lock.renew()
        assert lock.held()
        assert len(holders(pg, WORKER_LOCK)) == 1
    assert holders(pg, WORKER_LOCK) == []


def test_timers_whose_lock_is_lost_leave_them_to_others(pg: Store, postgres_server: Server, name: str) -> None:
    stopping = threading.Event()
    other = open_store(postgres_server.url(name), SystemClock())
    with (
        contextlib.closing(other),
        background("one", lambda: run_timers(pg, stopping), stopping.set),
        background("two", lambda: run_timers(other, stopping), stopping.set),
    ):
        for _ in range(3):
            (before,) = eventually(lambda: holders(pg, TIMERS_LOCK))
            end_sessions(pg, TIMERS_LOCK)
            eventually(lambda before=before: (now := holders(pg, TIMERS_LOCK)) and now != [before])
            assert len(holders(pg, TIMERS_LOCK)) == 1


class Steps:
    """Something that executes steps."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.running = False

    def run(self) -> None:
        self.running = True
        self.stopping.wait()
        self.running = False

    def stop(self) -> None:
        self.stopping.set()


def test_steps_are_executed_only_while_the_lock_is_held(pg: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.runtime.engine.assemble.INTERVAL_SECONDS", 0.05)
    made: list[Steps] = []

    def make(_beat: object) -> Steps:
        made.append(Steps())
        return made[-1]

    with pg.shared(WORKER_LOCK) as lock:
        worker = LockedWorker(lock, make)
        with background("worker", worker.run, worker.stop):
            eventually(lambda: made[0].running)
            end_sessions(pg, WORKER_LOCK)
            eventually(lambda: len(holders(pg, WORKER_LOCK)) == 1)
            assert made[0].running  # Nobody took it meanwhile.
            with contextlib.ExitStack() as others:
                monkeypatch.setattr(lock, "renew", lambda: False)
                end_sessions(pg, WORKER_LOCK)
                eventually(lambda: not made[0].running)
                monkeypatch.undo()
                assert others.enter_context(pg.exclusive("something else"))
            eventually(lambda: len(made) == 2 and made[1].running)
            assert len(holders(pg, WORKER_LOCK)) == 1
        assert not made[1].running


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_worker_whose_sessions_were_ended_works_on_and_ends_in_order(
    pg: Store, postgres_server: Server, name: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, postgres_server.url(name))
    process = machine.start("worker", answers=False)
    try:
        for lock in (WORKER_LOCK, TIMERS_LOCK):
            eventually(lambda lock=lock: holders(pg, lock))
        for lock in (WORKER_LOCK, TIMERS_LOCK):
            before = holders(pg, lock)
            end_sessions(pg, lock)
            eventually(lambda lock=lock, before=before: (now := holders(pg, lock)) and not set(now) & set(before))
            assert len(holders(pg, lock)) == 1
        assert process.terminate() == 0, process.log.read_text()
    finally:
        machine.stop()


def test_deadlines_are_brought_after_the_lock_was_lost(pg: Store) -> None:
    stopping = threading.Event()
    with background("timers", lambda: run_timers(pg, stopping), stopping.set):
        eventually(lambda: holders(pg, TIMERS_LOCK))
        end_sessions(pg, TIMERS_LOCK)
        due = isoformat(pg.clock.now() - timedelta(seconds=1))
        with pg.write() as tx:
            runs.insert_run(tx, build_run(id="run_1", deadline_at=due))

        def ended() -> bool:
            with pg.read() as tx:
                found = runs.get(tx, "run_1")
            return found is not None and found.status is RunStatus.TIMED_OUT

        eventually(ended)


def test_a_lock_on_a_file_is_never_lost(sqlite_url: str, clock: ManualClock) -> None:
    with contextlib.closing(open_store(sqlite_url, clock)) as store, store.shared("steps") as lock:
        assert lock.held()
        assert lock.renew()
