"""An environment that ends: its releases go with one approval, no run starts there any more, and then its file may go."""

from __future__ import annotations

from pathlib import Path

import pytest
from controller_bench import Bench

from controller.outcome import Done
from controller.preview import Believing, preview
from kneo import registry
from kneo.errors import Forbidden
from kneo.state.release import ConditionType
from kneo.store.engine import Store

RULES = {"people": {"bob": {"roles": ["approver"]}}, "prune": {"maxPercent": 100}}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    bench = Bench(store, tmp_path)
    for name in ("mail", "bank"):
        bench.repo.bundle(name, "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"}, **RULES)
    bench.repo.commit("Release two")
    bench.reconcile()
    assert bench.served() == {"mail": "1.0.0", "bank": "1.0.0"}
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"}, retired=True, **RULES)
    bench.repo.commit("Retire prod")
    return bench


def _resolve(bench: Bench) -> registry.Approved:
    with bench.store.read() as tx:
        return registry.resolve(tx, "mail", "prod", pin=bench.repo.pin)


def test_its_releases_go_with_one_approval_and_run_until_then(bench: Bench) -> None:
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    assert _resolve(bench).release.version == "1.0.0"
    bench.decide("mallory")
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Done(2)
    assert bench.served() == {}
    with pytest.raises(Forbidden) as refused:
        _resolve(bench)
    assert refused.value.code == "environment_retired"
    assert bench.condition(ConditionType.READY) == (True, "Retired")


def test_then_its_file_may_go_and_not_before(bench: Bench) -> None:
    bench.reconcile()
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.commit("Remove it too early")
    assert bench.reconcile().outcomes["prod"].state == "EnvironmentRemoved"
    bench.repo.git("revert", "--no-edit", "HEAD")
    bench.reconcile()
    bench.decide("bob")
    bench.reconcile()
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.commit("Remove it")
    with bench.store.read() as tx:
        reconciler = bench.reconciler()
        plan = preview(tx, reconciler.mirror.fetch(), reconciler.mirror, Believing(bench.repo.pin), None)
    assert [item["name"] for item in plan["environments"]] == ["dev"]
    assert bench.reconcile().outcomes["prod"] == Done(0)
    with pytest.raises(Forbidden) as refused:
        _resolve(bench)
    assert refused.value.code == "environment_retired"
