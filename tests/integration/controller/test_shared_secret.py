"""Bundles in the older format: from a commit to a release to what may run, and every way in which they must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_repo import announcement
from controller_bench import Bench
from sqlalchemy import select, update

from kneo import registry
from kneo.clock import SystemClock
from kneo.controller.preview import preview
from kneo.controller.reconcile import Reconciler, ReconcileResult
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.verify import TrustConfig
from kneo.errors import Untrusted
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.tables import bundles
from kneo.trust.hmac_bundle import sign_hmac_bundle

SECRET = "a secret that many share"
ACCEPTED = {"accept": ["dsse", "hmac-v1"], "roles": ["release"], "threshold": 1}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    bench = Bench(store, tmp_path)
    # A commit that accepts a format brings no bundle in it.
    bench.repo.environment("prod", {}, signatures=ACCEPTED)
    bench.repo.commit("Accept the older format")
    return bench


def put(bench: Bench, version: str, *, key: str = SECRET, environment: str | None = "prod") -> None:
    data = sign_hmac_bundle(
        announcement(),
        approved_by="ann",
        environment=environment,
        created_at=SystemClock().now(),
        key=key,
        key_id="KNEO_SERV_SPEC_SIGNING_KEY",
    )
    bench.repo.write(f"bundles/mail/{version}.json", data)
    bench.repo.environment("prod", {"mail": version}, signatures=ACCEPTED)
    bench.repo.commit(f"Release mail {version}")


def reconcile(bench: Bench, key: str) -> ReconcileResult:
    mirror = Mirror(str(bench.repo.folder), "main", bench.folder / "mirrors")
    return Reconciler(bench.store, mirror, bench.repo.pin, hmac_key=key).reconcile(bench.lease())


def may_run(bench: Bench, key: str) -> registry.ResolvedRelease:
    with bench.store.read() as tx:
        return registry.resolve(tx, "mail", "prod", pin=bench.repo.pin, hmac_key=key)


def test_it_is_served_and_may_run_where_the_key_is_known(bench: Bench) -> None:
    put(bench, "1.0.0")
    assert reconcile(bench, SECRET).outcomes["prod"].state == "Ready"
    approved = may_run(bench, SECRET)
    assert dict(approved.bundle.spec) == announcement()
    assert approved.bundle.digest == bench.release("mail").digest
    for key, code in (("", "PolicyDenied"), ("another secret", "SignatureInvalid")):
        with pytest.raises(Untrusted) as refused:
            may_run(bench, key)
        assert refused.value.code == code
        assert "bundles/mail/1.0.0.json" in str(refused.value)


def test_what_it_carries_is_shown_and_compared_like_any_other(bench: Bench) -> None:
    put(bench, "1.0.0")
    reconcile(bench, SECRET)
    with bench.store.read() as tx:
        stored = releases.bundle(tx, bench.release("mail").digest)
    assert stored is not None
    assert registry.spec_in(stored) == announcement()
    put(bench, "1.1.0")
    mirror = Mirror(str(bench.repo.folder), "main", bench.folder / "mirrors")
    with bench.store.read() as tx:
        told = preview(tx, mirror.fetch(), mirror, TrustConfig(bench.repo.pin, hmac_key=SECRET), "prod")
    (action,) = told["environments"][0]["actions"]
    assert (action["kind"], action["from"], action["to"], action["diff"]) == ("promote", "1.0.0", "1.1.0", [])


@pytest.mark.parametrize(("key", "reason"), [("", "PolicyDenied"), ("another secret", "SignatureInvalid")])
def test_a_controller_without_the_key_serves_nothing(bench: Bench, key: str, reason: str) -> None:
    put(bench, "1.0.0")
    assert reconcile(bench, key).outcomes["prod"].state == reason
    assert [(item.gate, item.reason) for item in bench.pending()] == [("verify", reason)]
    assert bench.served() == {}


def test_one_for_another_environment_is_refused(bench: Bench) -> None:
    put(bench, "1.0.0", environment="dev")
    assert reconcile(bench, SECRET).outcomes["prod"].state == "SubjectMismatch"


def test_what_is_served_stops_running_once_the_environment_no_longer_accepts_it(bench: Bench) -> None:
    put(bench, "1.0.0")
    reconcile(bench, SECRET)
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Ask for signatures")
    assert reconcile(bench, SECRET).outcomes["prod"].state == "PolicyDenied"
    with pytest.raises(Untrusted) as refused:
        may_run(bench, SECRET)
    assert refused.value.code == "PolicyDenied"


def test_a_changed_row_does_not_run(bench: Bench) -> None:
    put(bench, "1.0.0")
    reconcile(bench, SECRET)
    with bench.store.write() as tx:
        row = tx.connection.execute(select(bundles)).one()
        tx.connection.execute(update(bundles).values(payload=row.payload.replace(b"announcer", b"pronouncer")))
    with pytest.raises(Untrusted) as refused:
        may_run(bench, SECRET)
    assert refused.value.code == "BundleTampered"
