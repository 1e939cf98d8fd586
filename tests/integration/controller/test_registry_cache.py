"""What the controller remembers of the registry is what the registry holds, whoever changed it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from sqlalchemy import update

from kneo.clock import ManualClock
from kneo.controller.registry_cache import RegistryCache, known
from kneo.records.release import Promotion, PromotionKind
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import releases as release_rows


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def check(bench: Bench, cache: RegistryCache, fence: int = 1) -> None:
    with bench.store.read() as tx:
        found, fresh = cache.read(tx, fence), known(tx)
    assert {name: dict(here) for name, here in found.served.items() if here} == fresh.served
    assert found.history == fresh.history


def test_what_passes_change_is_known_without_reading_everything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reconciler, lease, reads = bench.reconciler(), bench.lease(), []
    monkeypatch.setattr("kneo.controller.registry_cache.known", lambda tx: (reads.append(1), known(tx))[1])
    for name in ("a", "b", "c"):
        bench.repo.bundle(name, "1.0.0")
    bench.repo.environment("dev", {"a": "1.0.0", "b": "1.0.0"}, inlineSpecs=True)
    bench.repo.environment("prod", dict.fromkeys("abc", "1.0.0"), prune={"maxPercent": 100})
    bench.repo.commit("Release three")
    for turn, wanted in enumerate(({"a": "1.1.0", "b": "1.0.0"}, {"b": "1.0.0"}, {"a": "1.0.0", "b": "1.0.0"})):
        reconciler.reconcile(lease)
        check(bench, reconciler._cache, lease.fence)
        if turn == 0:
            bench.repo.bundle("a", "1.1.0")
        bench.repo.environment("prod", wanted, prune={"maxPercent": 100})
        bench.repo.commit(f"Change {turn}")
    reconciler.reconcile(lease)
    check(bench, reconciler._cache, lease.fence)
    assert bench.served() == {"a": "1.0.0", "b": "1.0.0"}
    assert len(reads) == 1


def test_what_somebody_else_changes_is_read_again(bench: Bench) -> None:
    mine, lease = bench.reconciler(), bench.lease()
    bench.repo.release("prod", "a", "1.0.0")
    mine.reconcile(lease)
    bench.repo.release("prod", "a", "1.1.0")
    bench.reconcile()
    check(bench, mine._cache, lease.fence)
    assert mine.reconcile(lease).outcomes["prod"].state == "Ready"


def test_another_lease_means_reading_again(bench: Bench) -> None:
    bench.repo.release("prod", "a", "1.0.0")
    bench.reconcile()
    cache = RegistryCache()
    with bench.store.read() as tx:
        first = cache.read(tx, 1)
        assert cache.read(tx, 1) is first
        assert cache.read(tx, 2) is not first


def test_a_change_that_never_came_to_be_is_not_believed(bench: Bench) -> None:
    bench.repo.release("prod", "a", "1.0.0")
    bench.reconcile()
    cache = RegistryCache()
    check(bench, cache)
    facts = {"version": None, "actor": "me", "revision": "r", "audit_event_id": "e", "at": "", "reason": None}
    lost = Promotion(
        id="prom_z",
        environment="prod",
        bundle="a",
        kind=PromotionKind.RETIRE,
        from_digest=None,
        to_digest=None,
        **facts,
    )
    cache.add([lost])
    check(bench, cache)


def test_a_row_changed_behind_our_back_is_found_and_mended_in_time(bench: Bench) -> None:
    reconciler, lease = bench.reconciler(), bench.lease()
    bench.repo.release("prod", "a", "1.0.0")
    reconciler.reconcile(lease)
    before = bench.release("a")
    with bench.store.write() as tx:
        tx.connection.execute(update(release_rows).values(digest="sha256:" + "0" * 64, version="9.9.9"))
    reconciler.reconcile(lease)
    assert isinstance(bench.store.clock, ManualClock)
    bench.store.clock.advance(timedelta(minutes=11))
    assert reconciler.drift_due()
    reconciler.reconcile(bench.lease())
    assert (bench.release("a").digest, bench.served()) == (before.digest, {"a": "1.0.0"})


def test_a_rollback_that_a_person_asked_for_is_known_even_when_the_clock_went_back(bench: Bench) -> None:
    reconciler, lease = bench.reconciler(), bench.lease()
    for version in ("1.0.0", "1.1.0"):
        bench.repo.release("prod", "a", version)
        reconciler.reconcile(lease)
    assert isinstance(bench.store.clock, ManualClock)
    bench.store.clock.advance(-timedelta(minutes=1))
    payload = {"environment": "prod", "bundle": "a", "to": "1.0.0", "reason": "broken"}
    asked = ControllerRequest(id="req_1", kind="rollback", payload=payload, actor="bob", status="open", result=None)
    reconciler.handlers["rollback"](asked, bench.lease())
    check(bench, reconciler._cache, lease.fence)
    assert bench.served() == {"a": "1.0.0"}
