"""What a controller does when there is nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from kneo_process import eventually

from kneo.clock import ManualClock
from kneo.controller import loop
from kneo.controller.environment import DRIFT_INTERVAL
from kneo.controller.loop import Controller
from kneo.controller.reconcile import ReconcileResult
from kneo.records.release import ConditionType
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.requests import Lease
from kneo.trust.root_edit import revoke_key


def test_an_idle_controller_tidies_its_mirror(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, now = Bench(store, tmp_path), 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    monkeypatch.setattr("kneo.controller.source.mirror.PACKS", 3)
    controller = Controller(bench.store, bench.reconciler())
    packs = []
    for turn in range(4):
        if turn < 3:
            bench.repo.release("prod", "mail", f"1.{turn}.0")
        now += 3_600
        controller._turn()
        packs.append(len(list(tmp_path.glob("mirrors/*.git/objects/pack/*.pack"))))
    assert packs == [1, 2, 3, 1]
    assert bench.served() == {"mail": "1.2.0"}
    bench.repo.release("prod", "mail", "1.3.0")
    now += 3_600
    controller._turn()
    assert bench.served() == {"mail": "1.3.0"}


def test_a_request_that_cannot_be_handled_is_answered_and_stops_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kneo.controller.reconcile.parse_rollback", fail)
    bench = Bench(store, tmp_path)
    controller = Controller(bench.store, bench.reconciler())
    with store.write() as tx:
        request_id = requests.insert_request(tx, "rollback", {}, "ann")
    controller._turn()
    with store.read() as tx:
        request = requests.get(tx, request_id)
        assert requests.open_requests(tx) == ()
    assert request is not None
    assert (request.status, (request.result or {})["error"]) == ("failed", "internal_error")


@contextmanager
def running(controller: Controller) -> Iterator[None]:
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        yield
    finally:
        controller.stop()
        thread.join()


@pytest.mark.both_databases
def test_requests_and_a_free_lease_wake_controllers(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ANNOUNCED_POLL_SECONDS", 3_600.0)
    bench = Bench(store, tmp_path)
    bench.repo.release("prod", "mail", "1.0.0")
    first, second = (Controller(store, bench.reconciler(), interval=timedelta(hours=1)) for _ in range(2))

    def holder() -> str | None:
        with store.read() as tx:
            return requests.lease_holder(tx, requests.CONTROLLER_LEASE)

    def ask() -> None:
        assert "error" not in requests.ask(store, requests.RECONCILE, {"environment": "-"}, actor="ann")

    with running(first), running(second):
        leader = eventually(holder)
        for _ in range(3):
            ask()
        (first if leader == first.owner else second).stop()
        eventually(lambda: holder() not in {None, leader})
        ask()


def test_a_reconciler_that_is_dropped_leaves_nothing_running(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    reconciler = bench.reconciler()
    reconciler.reconcile(bench.lease())
    reading = reconciler.mirror._objects._talk
    assert reading is not None
    process = reading._process
    assert process.poll() is None
    del reading, reconciler
    assert process.poll() is not None


def _remove_file(bench: Bench) -> None:
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.commit("remove an environment")


def _break_trust(bench: Bench) -> None:
    bench.repo.write("environments/trust.json", b"{}")
    bench.repo.commit("break the trust root")


def _move_away(bench: Bench) -> None:
    bench.repo.folder.rename(bench.repo.folder.with_name("away"))


@pytest.mark.parametrize("change", [_remove_file, _break_trust, _move_away])
def test_a_drift_check_that_cannot_be_made_waits_for_the_next_interval(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Bench], None]
) -> None:
    bench, now, reconciled = Bench(store, tmp_path), 1_000.0, 0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    bench.repo.release("prod", "mail", "1.0.0")
    reconciler = bench.reconciler()
    controller = Controller(bench.store, reconciler)
    controller._turn()
    change(bench)
    now += 3_600
    controller._turn()
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(DRIFT_INTERVAL)
    reconcile = reconciler.reconcile

    def counted(lease: Lease) -> ReconcileResult:
        nonlocal reconciled
        reconciled += 1
        return reconcile(lease)

    monkeypatch.setattr(reconciler, "reconcile", counted)
    for _ in range(3):
        controller._turn()
    assert reconciled == 1


def test_a_revocation_that_was_dated_in_advance_is_noticed_at_its_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, now = Bench(store, tmp_path), 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    assert isinstance(store.clock, ManualClock)
    bench.repo.person("bob", "root")
    at = store.clock.now() + DRIFT_INTERVAL / 2
    bench.repo.next_root(revoke_key(bench.repo.root, bench.repo.key.keyid, at=at, reason="replaced"))
    bench.repo.release("prod", "mail", "1.0.0")
    controller = Controller(bench.store, bench.reconciler())
    controller._turn()
    results = []
    for _ in range(3):
        now += 3_600
        store.clock.advance(DRIFT_INTERVAL / 5)
        controller._turn()
        results.append(bench.condition(ConditionType.READY))
    assert results == [(True, "Serving"), (True, "Serving"), (False, "KeyRevoked")]
