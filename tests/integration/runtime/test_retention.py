"""Retention beside deadlines: it takes its time, and they do not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest
from builders import build_run, build_task
from installation_key import find_key
from kneo_process import eventually
from sqlalchemy import func, select

from kneo.background import background
from kneo.clock import ManualClock, SystemClock, isoformat
from kneo.digest import digest_of
from kneo.maintenance import RetentionManager, RetentionPolicy, make_retention
from kneo.records.agent_session import FinishedTurn, SessionKey
from kneo.records.run import RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine import timers
from kneo.runtime.engine.timers import RETENTION_LOCK, end_overdue_runs, run_retention, run_timers
from kneo.settings import from_env
from kneo.store import agent_sessions, idempotency, prune, runs, tasks
from kneo.store.engine import Store
from kneo.store.idempotency import KeyedRequest, KeyOf
from kneo.store.migrate import open_store
from kneo.store.tables import specs


def test_a_deadline_does_not_wait_for_retention(migrated_url: str) -> None:
    entered, leave, stopping = threading.Event(), threading.Event(), threading.Event()

    def prune_slowly(go_on: Callable[[], bool]) -> None:
        assert go_on()
        entered.set()
        leave.wait(240)

    def stop() -> None:
        stopping.set()
        leave.set()

    with (
        closing(open_store(migrated_url, SystemClock(), find_key)) as store,
        background("timers", lambda: run_timers(store, stopping), stopping.set),
        background("retention", lambda: run_retention(store, stopping, prune_slowly), stop),
    ):
        assert entered.wait(240)
        with store.write() as tx:
            due = isoformat(store.clock.now() - timedelta(seconds=1))
            runs.insert_run(tx, build_run(id="run_1", deadline_at=due))

        def ended() -> bool:
            with store.read() as tx:
                found = runs.get(tx, "run_1")
            return found is not None and found.status is RunStatus.TIMED_OUT

        eventually(ended)
        assert not leave.is_set()
        with store.exclusive(RETENTION_LOCK) as other:
            assert not other


def test_a_timer_that_fails_keeps_no_other_from_its_work(migrated_url: str, caplog: pytest.LogCaptureFixture) -> None:
    stopping, tried = threading.Event(), threading.Semaphore(0)

    def fail(_store: Store) -> None:
        tried.release()
        msg = "a row that no version reads"
        raise ValueError(msg)

    with closing(open_store(migrated_url, SystemClock(), find_key)) as store:
        with store.write() as tx:
            due = isoformat(store.clock.now() - timedelta(seconds=1))
            runs.insert_run(tx, build_run(id="run_1", deadline_at=due))
        timers = lambda: run_timers(store, stopping, duties=(fail, end_overdue_runs))  # noqa: E731
        with background("timers", timers, stopping.set):
            assert tried.acquire(timeout=240)
            assert tried.acquire(timeout=240), "it is not tried again"
        with store.read() as tx:
            found = runs.get(tx, "run_1")
        assert found is not None
        assert found.status is RunStatus.TIMED_OUT
    assert "a row that no version reads" in caplog.text


def old_runs(store: Store, clock: ManualClock, count: int) -> None:
    with store.write() as tx:
        for number in range(count):
            runs.insert_run(tx, build_run(id=f"run_{number}", status=RunStatus.SUCCEEDED))
    clock.advance(timedelta(days=10))


def test_a_turn_ends_when_its_time_is_over_and_goes_on_the_next_time(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "BATCH", 2)
    old_runs(store, clock, 7)
    turns = iter([True, True, False])
    manager, policy = RetentionManager(store), RetentionPolicy(runs_days=5, checkpoints_days=5)
    assert manager.prune(policy, lambda: next(turns, False)).runs == 4
    assert manager.prune(policy).runs == 3


@pytest.mark.parametrize("cut_short", [True, False])
def test_what_was_cut_short_goes_on_a_minute_later_and_the_rest_each_hour(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, cut_short: bool
) -> None:
    monkeypatch.setattr(timers, "TURN_SECONDS", -1.0 if cut_short else 60.0)
    stopping = threading.Event()
    with store.exclusive(RETENTION_LOCK) as lock:
        pause = timers._turn(stopping, lock, lambda go_on: go_on())
    assert pause == (timers.TURN_SECONDS if cut_short else timers.HOUR_SECONDS)


def test_retention_that_fails_does_not_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "TURN_SECONDS", 0.01)
    stopping, tried = threading.Event(), []

    def fail(go_on: Callable[[], bool]) -> None:
        del go_on
        tried.append(1)
        raise RuntimeError("broken")

    with background("retention", lambda: run_retention(store, stopping, fail), stopping.set):
        eventually(lambda: len(tried) > 2)


@pytest.mark.parametrize(("variables", "days"), [({}, 7), ({"KNEO_SERV_RETENTION_IDEMPOTENCY_DAYS": "2"}, 2)])
def test_idempotency_keys_are_forgotten_after_some_days(
    store: Store, clock: ManualClock, tmp_path, variables: dict[str, str], days: int
) -> None:
    request = KeyedRequest(
        key=KeyOf(principal="ann", scope="s", key="k"), request_digest="sha256:" + "a" * 64, attempt="1"
    )
    with store.write() as tx:
        idempotency.keep(tx, request, 200, {})
    retain = make_retention(from_env({"HOME": str(tmp_path), **variables}, tmp_path), store)
    clock.advance(timedelta(days=days) - timedelta(seconds=1))
    assert retain().idempotency_records == 0
    clock.advance(timedelta(seconds=2))
    assert retain().idempotency_records == 1


def specs_left(store: Store) -> int:
    with store.read() as tx:
        return tx.connection.execute(select(func.count()).select_from(specs)).scalar_one()


def test_specs_are_deleted_in_batches_for_as_long_as_there_is_time(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "BATCH", 2)
    digests = [digest_of(str(number).encode()) for number in range(7)]
    with store.write() as tx:
        for digest in digests:
            runs.insert_spec(tx, digest, b"{}")
        runs.insert_run(tx, build_run(spec_digest=digests[0]))
    clock.advance(timedelta(days=10))
    turns = iter([True, False])
    assert prune.prune_specs(store, timedelta(days=5), go_on=lambda: next(turns)) == 2
    assert specs_left(store) == 5
    RetentionManager(store).prune(RetentionPolicy(runs_days=5))
    assert specs_left(store) == 1
    with store.read() as tx:
        assert runs.load_spec(tx, digests[0]) == b"{}"


def test_the_spec_of_a_run_that_begins_meanwhile_stays(store: Store, clock: ManualClock) -> None:
    if store.is_sqlite:
        pytest.skip("one transaction at a time writes")
    digest = digest_of(b"a spec")
    store.transact(lambda tx: runs.insert_spec(tx, digest, b"{}"))
    clock.advance(timedelta(days=10))
    with store.write() as tx:
        runs.insert_spec(tx, digest, b"{}")
        assert prune.prune_specs(store, timedelta(days=5)) == 0
        runs.insert_run(tx, build_run(spec_digest=digest))
    assert prune.prune_specs(store, timedelta(days=5)) == 0
    assert specs_left(store) == 1


def test_sessions_have_a_retention_of_their_own(store: Store, clock: ManualClock) -> None:
    turn = FinishedTurn(agent="chat", user="hi", assistant="hello")
    old, new = (SessionKey(environment="", requester="ann", session_id=name) for name in ("old", "new"))
    store.transact(lambda tx: agent_sessions.append(tx, old, "run_1", [turn]))
    clock.advance(timedelta(days=3))
    store.transact(lambda tx: agent_sessions.append(tx, new, "run_2", [turn]))
    assert RetentionManager(store).prune(RetentionPolicy(runs_days=1)).sessions == 0
    settings = from_env({"KNEO_SERV_RETENTION_SESSIONS_DAYS": "2"})
    assert make_retention(settings, store)().sessions == 1
    with store.read() as tx:
        assert [each.key for each in agent_sessions.list_sessions(tx, "ann", limit=10)[0]] == [new]


def test_decisions_of_a_run_that_has_not_ended_stay(store: Store, clock: ManualClock) -> None:
    for status in (RunStatus.PAUSED, RunStatus.SUCCEEDED):
        run = build_run(id=f"run_{status}", status=status)
        task = build_task(id=f"cont_{status}", run_id=run.id, status=TaskStatus.APPLIED)
        with store.write() as tx:
            runs.insert_run(tx, run)
            tasks.insert_task(tx, task)
    clock.advance(timedelta(days=3))
    assert prune.prune_tasks(store, timedelta(days=1)) == 1
    with store.read() as tx:
        assert tasks.get(tx, "cont_paused") is not None
        assert tasks.get(tx, "cont_succeeded") is None
