"""An environment that ends: its releases go with one approval, no run starts there any more, and then its file may go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from controller_bench import Bench
from gates.asking import ask

from kneo import registry
from kneo.cli.releases.plan_render import as_text
from kneo.controller.policy_gate import is_retired
from kneo.controller.preview import preview
from kneo.controller.stages.report import Ready
from kneo.controller.stages.verify import TrustConfig
from kneo.errors import Forbidden
from kneo.records.release import ConditionType, EnvironmentRecord
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree
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


def _resolve(bench: Bench) -> registry.ResolvedRelease:
    with bench.store.read() as tx:
        return registry.resolve(tx, "mail", "prod", pin=bench.repo.pin)


def test_its_releases_go_with_one_approval_and_run_until_then(bench: Bench) -> None:
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    assert _resolve(bench).release.version == "1.0.0"
    bench.decide("mallory")
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(2)
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
        plan = preview(tx, reconciler.mirror.fetch(), reconciler.mirror, TrustConfig(bench.repo.pin), None)
    assert [item["name"] for item in plan["environments"]] == ["dev"]
    assert bench.reconcile().outcomes.keys() == {"dev"}
    with pytest.raises(Forbidden) as refused:
        _resolve(bench)
    assert refused.value.code == "environment_retired"


def test_it_stays_retired_with_a_name_that_a_new_file_cannot_have() -> None:
    spec = {"policy": {}, "signatures": {"roles": ["release"], "threshold": 1}, "retired": True}
    spec |= {"people": {"\u0430nn": {}}}
    content = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    record = EnvironmentRecord(
        name="prod",
        declaration=json.dumps(content).encode(),
        policy_digest="",
        revision="",
        pending=(),
        updated_at="",
    )
    assert is_retired(record, {})


# ---- who may retire an environment that serves nothing ---------------------------------------------------------------


def _empty(store: Store, folder: Path, **guard: object) -> Bench:
    """Follow a repository in which ``dev`` serves nothing and ``prod`` is as given."""
    bench = Bench(store, folder)
    bench.reconcile()
    bench.repo.environment("prod", {}, **guard)
    bench.repo.commit("Change prod")
    bench.reconcile()
    return bench


def _retire_dev(bench: Bench, *, retired: bool = True) -> str:
    bench.repo.environment("dev", {}, inlineSpecs=True, retired=retired)
    bench.repo.commit("Retire dev" if retired else "Bring dev back")
    return bench.reconcile().outcomes["dev"].state


def _read_spec(tree: Mapping[str, object]) -> Spec:
    spec = load_tree(dict(tree)).spec
    assert spec is not None
    return spec


def _start_inline(bench: Bench) -> None:
    starter = Starter(bench.store, _read_spec, pin=bench.repo.pin)
    starter.start(StartRequest(input="x", requester="eve", environment="dev", spec=bench.repo.other_spec()))


def test_an_empty_environment_is_retired_with_the_approval_of_those_that_require_one(
    store: Store, tmp_path: Path
) -> None:
    bench = _empty(store, tmp_path, approvals={"required": 1}, people={"bob": {"roles": ["approver"]}})
    assert _retire_dev(bench) == "AwaitingApproval"
    (pending,) = bench.pending("dev")
    assert (pending.kind, pending.who) == ("policy", ("ann", "bob"))
    assert "The retirement of dev" in pending.message
    _start_inline(bench)
    bench.decide("mallory", "dev")
    assert bench.reconcile().outcomes["dev"].state == "AwaitingApproval"
    bench.decide("bob", "dev")
    assert bench.reconcile().outcomes["dev"] == Ready(0)
    with pytest.raises(Forbidden) as refused:
        _start_inline(bench)
    assert refused.value.code == "environment_retired"
    assert _retire_dev(bench, retired=False) == "AwaitingApproval"
    with pytest.raises(Forbidden):
        _start_inline(bench)
    bench.decide("bob", "dev")
    assert bench.reconcile().outcomes["dev"] == Ready(0)
    _start_inline(bench)


def test_where_no_environment_requires_approvals_an_empty_one_is_retired_without(store: Store, tmp_path: Path) -> None:
    bench = _empty(store, tmp_path)
    _start_inline(bench)
    assert _retire_dev(bench) == "Ready"
    with pytest.raises(Forbidden) as refused:
        _start_inline(bench)
    assert refused.value.code == "environment_retired"
    assert _retire_dev(bench, retired=False) == "Ready"
    _start_inline(bench)


# ---- open tasks --------------------------------------------------------------------------------------------------------


def test_open_tasks_of_a_retired_environment_are_listed_by_status_and_plan(bench: Bench) -> None:
    task = ask(bench.store)
    with bench.store.read() as tx:
        reconciler = bench.reconciler()
        plan = preview(tx, reconciler.mirror.fetch(), reconciler.mirror, TrustConfig(bench.repo.pin), "prod")
    (planned,) = plan["environments"]
    assert planned["retired"] is True
    assert planned["open_tasks"]["count"] == 1
    assert planned["open_tasks"]["first"][0]["continuation_id"] == task.id
    assert task.id in "\n".join(as_text(plan | {"base": None}))
    bench.reconcile()
    bench.decide("bob")
    bench.reconcile()
    with bench.store.read() as tx:
        status = registry.status(tx, "prod")
    assert status is not None
    (ready,) = [item for item in status.conditions if item.type is ConditionType.READY]
    assert ready.reason == "Retired"
    assert task.id in ready.message
