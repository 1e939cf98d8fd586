"""Environment files that count beyond their own environment: the first one, and one that lets runs bring their own specs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo import registry
from kneo.controller.stages.report import Ready, Reconciling
from kneo.errors import Forbidden, NotFound
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.trust.statement import ApprovalDecision

APPROVALS = {"required": 1, "roles": ["approver"]}
PEOPLE = {"bob": {"roles": ["approver"]}}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def _guarded(bench: Bench) -> None:
    """A registry in which prod requires an approval."""
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.environment("dev", {}, inlineSpecs=False)
    bench.repo.commit("Require approvals in prod")
    outcomes = bench.reconcile().outcomes
    assert outcomes == {"dev": Ready(0), "prod": Ready(0)}


def _declared(bench: Bench) -> list[str]:
    with bench.store.read() as tx:
        return [record.name for record in releases.list_environments(tx)]


def _inline_allowed(bench: Bench, environment: str) -> bool:
    starter = Starter(bench.store, _read_spec, pin=bench.repo.pin)
    order = StartRequest(input="x", requester="eve", environment=environment, spec=bench.repo.other_spec())
    with contextlib.suppress(NotFound, Forbidden):
        starter.start(order)
        return True
    return False


def _read_spec(tree: Mapping[str, object]) -> Spec:
    spec = load_tree(dict(tree)).spec
    assert spec is not None
    return spec


def test_a_new_environment_waits_for_the_approvals_of_those_in_force(bench: Bench) -> None:
    _guarded(bench)
    bench.repo.bundle("mail", "1.0.0", environments=("evil",))
    bench.repo.environment("evil", {"mail": "1.0.0"}, inlineSpecs=True, people={"eve": {"roles": ["approver"]}})
    bench.repo.commit("Add an environment of my own")
    for _ in range(2):
        outcome = bench.reconcile().outcomes["evil"]
        assert isinstance(outcome, Reconciling)
        assert outcome.reason == "AwaitingApproval"
        assert "prod" in outcome.message
    (waits,) = bench.pending("evil")
    assert (waits.gate, waits.kind, waits.who) == ("policy", "policy", ("ann", "bob"))
    assert bench.served("evil") == {}
    assert "evil" not in _declared(bench)
    assert not _inline_allowed(bench, "evil")
    bench.decide("eve", "evil")
    assert bench.reconcile().outcomes["evil"].state == "AwaitingApproval"
    bench.decide("bob", "evil")
    assert bench.reconcile().outcomes["evil"] == Ready(1)
    assert _inline_allowed(bench, "evil")
    (event,) = [item.event for item in bench.sealed("environment.declared") if item.event.environment == "evil"]
    assert len(event.metadata["approvals"]) == 1


def test_a_rejected_new_environment_stays_out(bench: Bench) -> None:
    _guarded(bench)
    bench.repo.environment("evil", {})
    bench.repo.commit("Add an environment")
    bench.reconcile()
    bench.decide("bob", "evil", ApprovalDecision.REJECT)
    assert bench.reconcile().outcomes["evil"].state == "Rejected"


def test_inline_specs_wait_though_their_own_environment_requires_nothing(bench: Bench) -> None:
    _guarded(bench)
    assert not _inline_allowed(bench, "dev")
    bench.repo.environment("dev", {}, inlineSpecs=True)
    bench.repo.commit("Let runs bring their own specs")
    assert bench.reconcile().outcomes["dev"].state == "AwaitingApproval"
    assert not _inline_allowed(bench, "dev")
    bench.decide("bob", "dev")
    assert bench.reconcile().outcomes["dev"] == Ready(0)
    assert _inline_allowed(bench, "dev")


def test_every_environment_that_requires_approvals_is_heard(bench: Bench) -> None:
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.environment("dev", {}, approvals=APPROVALS | {"roles": ["lead"]}, people={"cid": {"roles": ["lead"]}})
    bench.repo.commit("Require approvals of two kinds")
    bench.reconcile()
    bench.repo.environment("new", {})
    bench.repo.commit("Add an environment")
    bench.reconcile()
    bench.decide("bob", "new")
    assert bench.reconcile().outcomes["new"].state == "AwaitingApproval"
    bench.decide("cid", "new")
    assert bench.reconcile().outcomes["new"] == Ready(0)


def test_loosening_the_guard_and_adding_an_environment_in_one_commit_helps_nobody(bench: Bench) -> None:
    _guarded(bench)
    bench.repo.environment("prod", {}, people=PEOPLE)
    bench.repo.environment("evil", {}, inlineSpecs=True)
    bench.repo.commit("Require nothing, and add an environment")
    bench.reconcile()
    bench.decide("bob", "prod")
    outcomes = bench.reconcile().outcomes
    assert outcomes["prod"] == Ready(0)
    assert outcomes["evil"].state == "AwaitingApproval"
    assert bench.reconcile().outcomes["evil"].state == "AwaitingApproval"


def test_where_no_environment_requires_approvals_a_new_one_needs_none(bench: Bench) -> None:
    bench.reconcile()
    bench.repo.environment("new", {}, inlineSpecs=True)
    bench.repo.commit("Add an environment")
    assert bench.reconcile().outcomes["new"] == Ready(0)


def test_the_first_environment_that_requires_approvals_is_no_weaker_rule(bench: Bench) -> None:
    bench.reconcile()
    bench.repo.environment("strict", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.environment("loose", {}, inlineSpecs=True)
    bench.repo.commit("Add one that requires approvals, and one that does not")
    outcomes = bench.reconcile().outcomes
    assert (outcomes["strict"].state, outcomes["loose"].state) == ("Ready", "AwaitingApproval")
    bench.repo.commit("Something else")
    assert bench.reconcile().outcomes["loose"].state == "AwaitingApproval"
    bench.decide("bob", "loose")
    assert bench.reconcile().outcomes["loose"].state == "Ready"


def test_a_deleted_file_still_guards(bench: Bench) -> None:
    _guarded(bench)
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.environment("evil", {}, inlineSpecs=True)
    bench.repo.commit("Remove what is in the way")
    assert bench.reconcile().outcomes["evil"].state == "AwaitingApproval"


def test_an_empty_database_serves_only_what_keys_of_the_root_approved(bench: Bench, tmp_path: Path) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Begin")
    assert bench.reconcile().outcomes["dev"] == Ready(0)
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.repo.person("bob", "approver")
    bench.repo.commit("Trust bob")
    bench.reconcile()
    bench.repo.approve("prod", "mail", "1.0.0", "bob")
    bench.repo.environment("evil", {"mail": "1.0.0"}, inlineSpecs=True, approvals={"required": 0})
    bench.repo.commit("Approve mail, and add an environment of my own")
    first = bench.reconcile().outcomes
    again = Bench.__new__(Bench)
    again.__dict__ |= bench.__dict__
    again.store = open_store(f"sqlite:///{tmp_path / 'again.sqlite'}", bench.store.clock)
    again.folder = tmp_path / "again"
    rebuilt = again.reconcile().outcomes
    for outcomes in (first, rebuilt):
        assert outcomes["evil"].state == "AwaitingApproval"
        assert outcomes["prod"].state == "Ready"
    assert (bench.served(), bench.served("evil")) == (again.served(), again.served("evil")) == ({"mail": "1.0.0"}, {})
    assert again.reconcile().outcomes["evil"].state == "AwaitingApproval"
    again.store.close()


def _begin_with_this(bench: Bench) -> None:
    bench.repo.git("add", "-A")
    bench.repo.git("commit", "-q", "--amend", "--no-edit")


def test_on_an_empty_database_people_whom_only_the_file_names_do_not_count(bench: Bench) -> None:
    bench.repo.environment("prod", {}, approvals=APPROVALS, people={"eve": {"roles": ["approver"]}})
    _begin_with_this(bench)
    outcomes = bench.reconcile().outcomes
    assert {outcome.state for outcome in outcomes.values()} == {"AwaitingApproval"}
    bench.decide("eve")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.repo.agree("prod")
    bench.repo.commit("Ann approves")
    outcomes = bench.reconcile().outcomes
    assert (outcomes["prod"].state, outcomes["dev"].state) == ("Ready", "AwaitingApproval")
    # The environments that still wait need the rules that are in force by now.
    assert bench.reconcile().outcomes["dev"].state == "AwaitingApproval"


def test_on_an_empty_database_a_file_that_cannot_be_read_may_require_approvals(bench: Bench) -> None:
    bench.repo.write("environments/prod.yaml", b"x: [\n")
    _begin_with_this(bench)
    outcomes = bench.reconcile().outcomes
    assert (outcomes["prod"].state, outcomes["dev"].state) == ("PolicyInvalid", "AwaitingApproval")


def test_a_promotion_of_an_environment_that_waits_is_not_found(bench: Bench) -> None:
    _guarded(bench)
    bench.repo.environment("evil", {})
    bench.repo.commit("Add an environment")
    bench.reconcile()
    with pytest.raises(NotFound), bench.store.read() as tx:
        registry.declared(tx, "evil")
