"""Gates through the whole controller: people, holds, changed rules, changed trust. On both databases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from config_repo import announcement
from controller_bench import Bench
from sqlalchemy import update

from kneo import registry
from kneo.controller.stages.report import Ready, Reconciling, Stalled
from kneo.records.release import ConditionType, Hold, Suspension
from kneo.registry import explain
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import environments
from kneo.trust.dsse import add_signature, parse_envelope, serialise
from kneo.trust.root_edit import add_key, set_role
from kneo.trust.statement import ApprovalDecision

APPROVALS = {"required": 1, "roles": ["approver"], "exclude": ["bundle_signer"]}
STRICT_MODELS = {"enabled": True, "blocked_diagnostic_codes": ["W_MODEL_NOT_ALLOWED"]}
PEOPLE = {"bob": {"roles": ["approver"]}, "cid": {"roles": ["approver"]}, "ann": {"roles": ["approver"]}}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def _needs_approval(bench: Bench, **changes: object) -> Mapping[str, object]:
    rule = {**APPROVALS, **changes}
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=rule, people=PEOPLE)
    bench.repo.commit("Release mail")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Reconciling)
    assert outcome.reason == "AwaitingApproval"
    return rule


def _planned(bench: Bench, environment: str = "prod") -> dict[str, Any]:
    """Return the plan of the newest commit for an environment."""
    handler = bench.reconciler().handlers["plan"]
    request = ControllerRequest(id="ask_1", kind="plan", payload={}, actor="ann", status="open", result=None)
    environments = handler(request, bench.lease())["environments"]
    assert isinstance(environments, list)
    return next(item for item in environments if item["name"] == environment)


def test_a_plan_keeps_a_pending_bundle_whose_successor_another_environment_has_released(bench: Bench) -> None:
    _needs_approval(bench)
    bench.repo.release("dev", "mail", "1.1.0")
    outcome = bench.reconcile().outcomes["prod"]
    assert (outcome.state, bench.served("dev")) == ("AwaitingApproval", {"mail": "1.1.0"})
    planned = _planned(bench)
    assert [item["reason"] for item in planned["verdicts"]] == ["Verified"]
    assert [item["reason"] for item in planned["gates"]] == ["AwaitingApproval"]


def test_a_gate_of_the_environment_counts_for_what_runs_there_and_only_while_it_stands(bench: Bench) -> None:
    spec = announcement()
    spec["workflow"]["steps"].pop(1)
    spec["components"]["functions"]["publish"]["capabilities"] = ["network"]
    gates = [{"name": "out", "match": {"capabilities": ["network"]}, "before": {"human": {"on_reject": "stop"}}}]
    bench.repo.environment("prod", {}, gates=gates)
    bench.repo.commit("Ask in prod only")
    bench.repo.bundle("mail", "1.0.0", spec)
    bench.repo.environment("dev", {"mail": "1.0.0"})
    bench.repo.environment("prod", {"mail": "1.0.0"}, gates=gates)
    bench.repo.commit("Release mail to both")
    bench.reconcile()
    assert (bench.served("dev"), bench.served("prod")) == ({}, {"mail": "1.0.0"})
    assert bench.condition(ConditionType.VERIFIED, "dev") == (False, "SpecInvalid")
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Ask no more")
    bench.reconcile()
    assert bench.condition(ConditionType.VERIFIED) == (False, "SpecInvalid")


@pytest.mark.parametrize("declared", [{}, {"lookup": {"description": "Look up a user."}}])
def test_a_bundle_may_use_tools_that_the_program_of_the_worker_registers(bench: Bench, declared: dict) -> None:
    spec = announcement(tools=declared)
    spec["components"]["agents"]["writer"]["tools"] = {
        "include": ["lookup"],
        "permissions": {"allow_network": False, "allow_shell": False},
    }
    bench.repo.bundle("mail", "1.0.0", spec)
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release mail")
    bench.reconcile()
    assert bench.served() == {"mail": "1.0.0"}


def test_a_registered_tool_that_needs_an_approval_is_gated_by_its_declaration(bench: Bench) -> None:
    lookup = {"description": "Look up a user.", "capabilities": ["shell"]}
    spec = announcement(tools={"lookup": lookup})
    spec["components"]["agents"]["writer"]["tools"] = {"include": ["lookup"], "permissions": {"allow_shell": True}}
    bench.repo.bundle("mail", "1.0.0", spec)
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release mail")
    bench.reconcile()
    assert bench.condition(ConditionType.VERIFIED) == (False, "SpecInvalid")


def test_taking_a_gate_away_needs_the_approvals_in_force(bench: Bench) -> None:
    gates = [{"name": "out", "match": {"refs": ["publish"]}, "before": {"human": {"on_reject": "stop"}}}]
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE, gates=gates)
    bench.repo.commit("Ask")
    bench.reconcile()
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Ask no more")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Reconciling)
    assert "the gate out is removed" in outcome.message
    with bench.store.read() as tx:
        assert registry.declared(tx, "prod").gates
    more = {"name": "more", "match": {"refs": ["draft"]}, "after": {"human": {"on_reject": "stop"}}}
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE, gates=[*gates, more])
    bench.repo.commit("Ask more")
    bench.reconcile()
    with bench.store.read() as tx:
        assert [gate.name for gate in registry.declared(tx, "prod").gates] == ["out", "more"]


def test_a_recorded_approval_opens_the_gate(bench: Bench) -> None:
    _needs_approval(bench)
    assert bench.pending()[0].who == ("bob", "cid")
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    (event,) = bench.events("release.promoted")
    assert event["approvals"]


def test_a_committed_approval_opens_the_gate(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    bench.reconcile()
    _needs_approval(bench)
    bench.repo.approve("prod", "mail", "1.0.0", "bob")
    bench.repo.commit("Approve mail")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_whoever_signed_the_bundle_does_not_count(bench: Bench) -> None:
    _needs_approval(bench)
    bench.decide("ann")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"


def test_somebody_the_file_does_not_know_does_not_count(bench: Bench) -> None:
    _needs_approval(bench)
    bench.decide("mallory")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"


def test_one_person_is_counted_once_however_spelled(bench: Bench) -> None:
    _needs_approval(bench, required=2)
    bench.decide("bob")
    bench.decide("BOB")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.decide("cid")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_one_person_with_several_keys_is_one_approver(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    bench.repo.commit("Trust bob")
    bench.reconcile()
    _needs_approval(bench, required=2)
    bench.repo.approve("prod", "mail", "1.0.0", "bob")
    bench.repo.approve("prod", "mail", "1.0.0", "bob", days=3, file="again")
    bench.repo.person("bob", "approver")
    bench.repo.approve("prod", "mail", "1.0.0", "bob")
    bench.repo.commit("Bob, Bob and Bob approve")
    bench.reconcile()
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert "1 of 2" in bench.pending()[0].message
    bench.decide("cid")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_an_approval_expires(bench: Bench) -> None:
    _needs_approval(bench, required=2, expires="1h")
    bench.decide("bob")
    bench.store.clock.advance(timedelta(hours=2))
    bench.decide("cid")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    (outdated,) = bench.pending()[0].outdated_approvals
    assert (outdated.principal, outdated.reason) == ("bob", "expired")
    assert bench.pending()[0].message.endswith(outdated.message)
    assert "and the approval expired on" in outdated.message


def test_a_rejection_stops_what_others_approved_until_it_is_taken_back(bench: Bench) -> None:
    _needs_approval(bench)
    bench.decide("bob")
    bench.decide("cid", decision=ApprovalDecision.REJECT)
    outcome = bench.reconcile().outcomes["prod"]
    assert outcome.state == "Rejected"
    bench.store.clock.advance(timedelta(seconds=1))
    bench.decide("cid")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_where_approvals_must_be_signed_the_services_word_is_not_enough(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    bench.reconcile()
    _needs_approval(bench, signed=True)
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.repo.approve("prod", "mail", "1.0.0", "bob")
    bench.repo.commit("Approve mail")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_an_approval_for_dev_says_nothing_about_prod(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    bench.reconcile()
    rule = _needs_approval(bench)
    bench.repo.environment("dev", {"mail": "1.0.0"}, approvals=rule, people=PEOPLE)
    bench.repo.approve("dev", "mail", "1.0.0", "bob")
    bench.repo.commit("Approve mail for dev")
    outcomes = bench.reconcile().outcomes
    assert outcomes["prod"].state == "AwaitingApproval"


def test_an_approval_does_not_outlive_the_rules_it_was_given_under(bench: Bench) -> None:
    rule = _needs_approval(bench, required=2)
    bench.decide("bob")
    given = bench.pending()[0].policy_digest
    assert given is not None
    bench.reconcile()
    assert bench.pending()[0].outdated_approvals == ()
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=rule, people=PEOPLE, atomic=True)
    bench.repo.commit("Tighten")
    sentence = (
        f"bob approved mail 1.0.0 under rules {given[7:15]}…, which have changed since; it needs bob's approval again."
    )
    (planned,) = _planned(bench)["gates"]
    assert planned["message"].startswith(f"mail 1.0.0 is waiting for approval (0 of 2). {sentence}")
    assert [item["principal"] for item in planned["outdated_approvals"]] == ["bob"]
    bench.reconcile()
    bench.decide("cid")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    (outdated,) = bench.pending()[0].outdated_approvals
    assert (outdated.principal, outdated.policy_digest, outdated.reason) == ("bob", given, "rules_changed")
    assert outdated.message == sentence
    with bench.store.read() as tx:
        found = explain.why(tx, "prod", "mail")
        status = registry.find_status(tx, "prod")
    assert found.gates[0].message == f"mail 1.0.0 is waiting for approval (1 of 2). {sentence}"
    assert status.pending[0].outdated_approvals == (outdated,)
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_loosening_needs_the_approvals_of_the_file_in_force(bench: Bench) -> None:
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Ask for approvals")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, people=PEOPLE)
    bench.repo.commit("Ask for none, and bring a bundle")
    outcome = bench.reconcile().outcomes["prod"]
    assert outcome.state == "AwaitingApproval"
    assert bench.condition(ConditionType.POLICY_VALID) == (False, "AwaitingApproval")
    assert bench.pending()[0].kind == "policy"
    bench.decide("bob")
    # The rules changed; the bundle that came with them is still evaluated by the old ones, too.
    outcome = bench.reconcile().outcomes["prod"]
    assert outcome.state == "AwaitingApproval"
    assert bench.pending()[0].bundle == "mail"
    assert bench.pending()[0].message.endswith(
        "The rule is from before this commit; the new rules are approved, and the next reconciliation is without it."
    )
    assert bench.served() == {}
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.reconcile().outcomes["prod"] == Ready(0)


def test_rules_that_needed_no_approval_admit_nothing_that_comes_with_them(bench: Bench) -> None:
    bench.repo.environment("prod", {}, models={"allow": [{"provider": "openai"}]}, policy=STRICT_MODELS)
    bench.repo.commit("Ask for approvals")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0", _unreviewed())
    bench.repo.environment("prod", {"mail": "1.0.0"}, models={"allow": [{"provider": "dummy"}]}, policy=STRICT_MODELS)
    bench.repo.commit("Allow a model, and bring a bundle that needs it")
    for _ in range(2):
        assert bench.reconcile().outcomes["prod"].state == "PolicyDenied"
        assert bench.served() == {}
    bench.repo.commit("Another commit")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_a_person_who_adds_himself_to_the_file_cannot_approve_that(bench: Bench) -> None:
    bench.repo.environment("prod", {}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Ask for approvals")
    bench.reconcile()
    bench.repo.environment("prod", {}, approvals=APPROVALS, people={**PEOPLE, "mallory": {"roles": ["approver"]}})
    bench.repo.commit("Add mallory")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.decide("mallory")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"


def test_tightening_passes_at_once_and_holds_for_what_comes_with_it(bench: Bench) -> None:
    bench.repo.environment("prod", {})
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Ask for approvals")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert bench.condition(ConditionType.POLICY_VALID) == (True, "Valid")


def test_a_key_and_what_it_signed_cannot_come_in_one_commit(bench: Bench) -> None:
    bench.reconcile()
    eve = bench.repo.person("eve", "release")
    bench.repo.bundle("mail", "1.0.0", keys=[eve])
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Trust eve, and her bundle")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "SignatureInvalid"
    assert bench.reconcile().outcomes["prod"].state == "SignatureInvalid"
    bench.repo.commit("Another commit")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_a_role_and_what_it_signed_cannot_come_in_one_commit_where_another_environment_knows_the_bundle(
    bench: Bench,
) -> None:
    eve = bench.repo.person("eve", "trial")
    trial = {"accept": ["dsse"], "roles": ["trial"], "threshold": 1}
    bench.repo.next_root(set_role(bench.repo.root, "trial", paths=["*"]))
    bench.repo.environment("dev", {}, inlineSpecs=True, signatures=trial)
    bench.repo.commit("Let eve sign for dev")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0", keys=[eve])
    bench.repo.environment("dev", {"mail": "1.0.0"}, inlineSpecs=True, signatures=trial)
    bench.repo.commit("Release eve's bundle to dev")
    assert bench.reconcile().outcomes["dev"] == Ready(1)

    bench.repo.next_root(add_key(bench.repo.root, eve.public, principal="eve", roles=["release"]))
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Let eve sign for prod, and release her bundle there")
    assert [_planned(bench, name)["verdicts"][0]["reason"] for name in ("dev", "prod")] == [
        "Verified",
        "SignatureInvalid",
    ]
    for _ in range(2):
        assert bench.reconcile().outcomes["prod"].state == "SignatureInvalid"
        assert bench.served() == {}
    assert "under the trust and rules in force before this commit" in bench.pending()[0].message.lower()
    bench.repo.commit("Another commit")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_what_an_environment_has_served_is_served_there_again_though_its_trust_changes(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    eve = bench.repo.person("eve", "release")
    resigned = add_signature(parse_envelope((bench.repo.folder / "bundles/mail/1.0.0.dsse.json").read_bytes()), eve)
    bench.repo.write("bundles/mail/1.0.0.dsse.json", serialise(replace(resigned, signatures=resigned.signatures[1:])))
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Sign the earlier version with a new key, and return to it")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.served() == {"mail": "1.0.0"}


def test_a_policy_denies(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0", _unreviewed())
    bench.repo.environment("prod", {"mail": "1.0.0"}, policy={"enabled": True, "require_human_review": True})
    bench.repo.commit("Release what asks nobody")
    assert bench.reconcile().outcomes["prod"].state == "PolicyDenied"
    assert bench.served() == {}


def test_a_policy_that_gets_stricter_than_what_is_served_says_so(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0", _unreviewed())
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    bench.repo.environment("prod", {"mail": "1.0.0"}, policy={"enabled": True, "require_human_review": True})
    bench.repo.commit("Ask for review")
    assert bench.reconcile().outcomes["prod"].state == "PolicyDenied"
    assert bench.served() == {"mail": "1.0.0"}


def test_an_environment_that_insists_on_pins_takes_no_tool_of_an_mcp_server_without_one(bench: Bench) -> None:
    pin = {"description": "Finds.", "schema_digest": f"sha256:{'0' * 64}"}
    for version, reference in (("1.0.0", {"server": "crm"}), ("1.1.0", {"server": "crm", "pin": pin})):
        tool = {"description": "Finds people.", "mcp": reference}
        servers = {"crm": {"transport": "stdio", "command": "/usr/bin/crm-mcp"}}
        bench.repo.bundle("mail", version, {**_unreviewed(), "tools": {"find": tool}, "mcp_servers": servers})
    insists = {"mcp": {"pinned": True, "commands": ["/usr/bin/crm-mcp"]}}
    bench.repo.environment("prod", {"mail": "1.0.0"}, tools=insists)
    bench.repo.commit("Release an unpinned tool")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "PolicyDenied"
    assert "find has no pin" in outcome.message
    assert "--pin-tools" in outcome.message
    bench.repo.environment("prod", {"mail": "1.1.0"}, tools=insists)
    bench.repo.commit("Release a pinned one")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_an_environment_refuses_a_bundle_whose_sandboxes_exceed_its_limits(bench: Bench) -> None:
    render = {"description": "Renders.", "implementation": "acme.render", "sandbox": {"net": ["api.example:443"]}}
    bench.repo.bundle("mail", "1.0.0", {**_unreviewed(), "tools": {"render": render}})
    bench.repo.environment("prod", {"mail": "1.0.0"}, tools={"sandbox": {"limits": {"net": ["crm.example:443"]}}})
    bench.repo.commit("Release a tool that reaches another host")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "PolicyDenied"
    message = "render may reach api.example:443, which prod does not permit (tools.sandbox.limits.net)."
    assert message in outcome.message


def test_an_environment_that_requires_kernel_names_the_functions_of_programs_that_it_trusts(bench: Bench) -> None:
    for version, name in (("1.0.0", "shout"), ("1.1.0", "whisper")):
        bench.repo.bundle("mail", version, {**_unreviewed(), "tools": {name: {"description": "Of the program."}}})
    trusting = {"sandbox": {"required": "kernel", "trusted": ["shout"]}}
    bench.repo.environment("prod", {"mail": "1.0.0"}, tools=trusting)
    bench.repo.commit("Release a tool of the program")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    bench.repo.environment("prod", {"mail": "1.1.0"}, tools=trusting)
    bench.repo.commit("Release another one")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert "sandbox_trusted: whisper is registered by the program and runs in the worker" in outcome.message


def test_an_environment_refuses_a_bundle_whose_models_and_tools_it_does_not_allow(bench: Bench) -> None:
    blocked = {"enabled": True, "blocked_diagnostic_codes": ["W_MODEL_NOT_ALLOWED", "W_TOOL_DENIED"]}
    bench.repo.bundle("mail", "1.0.0", _unreviewed())
    bench.repo.environment("prod", {"mail": "1.0.0"}, policy=blocked, models={"allow": [{"provider": "openai"}]})
    bench.repo.commit("Release what asks another model")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert (outcome.reason, "dummy/dummy" in outcome.message) == ("PolicyDenied", True)
    bench.repo.environment("prod", {"mail": "1.0.0"}, policy=blocked, models={"allow": [{"provider": "dummy"}]})
    bench.repo.commit("Allow the model")
    bench.reconcile()  # the rules in force before this commit still hold for what comes with it
    bench.repo.commit("Another commit")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_a_privileged_tool_is_released_where_the_environment_puts_a_gate_at_its_calls(bench: Bench) -> None:
    writer = {
        "name": "writer",
        "model": {"provider": "dummy", "name": "dummy"},
        "tools": {"include": ["pay"], "permissions": {}},
    }
    tool = {"description": "Pays.", "implementation": "acme.pay", "capabilities": ["privileged"]}
    spec = {**_unreviewed(), "components": {"agents": {"writer": writer}}, "tools": {"pay": tool}}
    bench.repo.bundle("mail", "1.0.0", spec)
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release a tool that pays unseen")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert "E_PRIVILEGED_UNGATED" in outcome.message
    gate = {"name": "money", "match": {"kinds": ["tool"], "capabilities": ["privileged"]}, "before": True}
    people = {"ann": {"roles": ["reviewer"]}}
    bench.repo.environment("prod", {"mail": "1.0.0"}, gates=[gate], people=people)
    bench.repo.commit("Ask before money moves")
    bench.reconcile()  # the rules in force before this commit still hold for what comes with it
    bench.repo.commit("Another commit")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def _unreviewed() -> dict[str, object]:
    agent = {"name": "writer", "model": {"provider": "dummy", "name": "dummy"}}
    return {
        "version": "v1",
        "agent": {"name": "announcer", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {"type": "sequential", "name": "w", "steps": [{"id": "draft", "kind": "agent", "ref": "writer"}]},
        "components": {"agents": {"writer": agent}},
    }


def test_a_hold_keeps_what_is_served(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    with bench.store.write() as tx:
        releases.put_hold(tx, Hold(environment="prod", bundle="mail", digest=None, actor="bob", reason="no", since=""))
    bench.repo.release("prod", "mail", "1.1.0")
    assert bench.reconcile().outcomes["prod"].state == "Held"
    assert bench.condition(ConditionType.HELD) == (True, "Held")
    assert bench.served() == {"mail": "1.0.0"}
    with bench.store.write() as tx:
        releases.delete_hold(tx, "prod", "mail")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_a_suspension_ends_by_itself(bench: Bench) -> None:
    bench.reconcile()
    until = (bench.store.clock.now() + timedelta(hours=1)).isoformat()
    with bench.store.write() as tx:
        item = Suspension(environment="prod", actor="bob", reason="incident", since="", until=until)
        releases.put_suspension(tx, item)
    bench.repo.release("prod", "mail", "1.0.0")
    assert bench.reconcile().outcomes["prod"].state == "Suspended"
    bench.store.clock.advance(timedelta(hours=2))
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_an_emptied_environment_goes_through_when_somebody_agrees_to_exactly_that(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, people=PEOPLE)
    bench.repo.commit("Release mail")
    bench.reconcile()
    bench.repo.environment("prod", {}, people=PEOPLE)
    bench.repo.commit("Empty prod")
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.served() == {}


def test_soak_begins_again_with_a_failed_run(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("dev", {"mail": "1.0.0"})
    bench.repo.environment("prod", {"mail": "1.0.0"}, promoteFrom="dev", soak="1h")
    bench.repo.commit("Release mail to both")
    outcomes = bench.reconcile().outcomes
    assert outcomes["dev"] == Ready(1)
    assert outcomes["prod"].state == "AwaitingSoak"
    bench.store.clock.advance(timedelta(minutes=40))
    bench.failed_run("mail", "dev")
    bench.store.clock.advance(timedelta(minutes=40))
    assert bench.reconcile().outcomes["prod"].state == "AwaitingSoak"
    bench.store.clock.advance(timedelta(minutes=21))
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_what_depends_on_each_other_comes_together(bench: Bench) -> None:
    digest = bench.repo.bundle("tools", "1.0.0")
    bench.repo.bundle("mail", "1.0.0", needs={"tools": digest})
    bench.repo.environment("prod", {"mail": "1.0.0"}, atomic=True)
    bench.repo.commit("Release mail alone")
    assert bench.reconcile().outcomes["prod"].state == "DependencyNotReady"
    bench.repo.environment("prod", {"mail": "1.0.0", "tools": "1.0.0"}, atomic=True)
    bench.repo.commit("Release both")
    assert bench.reconcile().outcomes["prod"] == Ready(2)
    bench.repo.bundle("tools", "1.1.0")
    bench.repo.environment("prod", {"mail": "1.0.0", "tools": "1.1.0"}, atomic=True)
    bench.repo.commit("Take away what mail depends on")
    assert bench.reconcile().outcomes["prod"].state == "DependencyNotReady"
    assert bench.served() == {"mail": "1.0.0", "tools": "1.0.0"}


def test_a_revoked_key_shows_what_is_served_by_it(bench: Bench) -> None:
    bench.repo.person("eve", "release")
    bench.repo.commit("Trust eve")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0", keys=[bench.repo.people["eve"]])
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release by eve")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    bench.repo.revoke("eve", compromised_since=bench.store.clock.now() - timedelta(days=1))
    bench.repo.commit("Eve was robbed")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "KeyRevoked"
    assert bench.condition(ConditionType.DRIFT_DETECTED) == (True, "KeyRevoked")


def test_a_key_that_is_revoked_while_people_decide_vouches_for_nothing(bench: Bench) -> None:
    bench.repo.person("eve", "release")
    bench.repo.commit("Trust eve")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0", keys=[bench.repo.people["eve"]])
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=APPROVALS, people=PEOPLE)
    bench.repo.commit("Release by eve")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.decide("bob")
    bench.repo.revoke("eve")
    bench.repo.commit("Eve was robbed")
    assert bench.reconcile().outcomes["prod"].state == "KeyRevoked"
    assert bench.served() == {}


def test_a_lost_mirror_does_not_forget_history(bench: Bench, tmp_path: Path) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.release("prod", "mail", "1.1.0")
    bench.repo.git("reset", "-q", "--soft", "HEAD~2")
    bench.repo.commit("Another past")
    bench.forget_mirror()
    with pytest.raises(Exception, match="does not follow"):
        bench.reconcile()
    assert bench.served() == {"mail": "1.0.0"}


def test_a_rewritten_history_is_followed_when_the_root_role_agrees(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    old = bench.repo.head()
    bench.repo.git("reset", "-q", "--soft", "HEAD~1")
    new = bench.repo.commit("Another past")
    with pytest.raises(Exception, match="does not follow"):
        bench.reconcile()
    bench.accept_rewrite(old, new, bench.repo.stranger)
    with pytest.raises(Exception, match="does not follow"):
        bench.reconcile()
    bench.accept_rewrite(old, new, bench.repo.key)
    assert bench.reconcile().outcomes["prod"] == Ready(0)


def test_rules_that_nobody_can_read_any_more_allow_nothing(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    with bench.store.write() as tx:
        tx.connection.execute(update(environments).values(declaration=b"apiVersion: kneo/v9"))
    bench.repo.bundle("mail", "1.1.0")
    bench.repo.environment("prod", {"mail": "1.1.0"}, inlineSpecs=True)
    bench.repo.commit("Loosen what nobody can compare")
    outcome = bench.reconcile().outcomes["prod"]
    assert (outcome.state, bench.served()) == ("PolicyUnreadable", {"mail": "1.0.0"})
    bench.repo.environment("prod", {"mail": "1.1.0"}, inlineSpecs=False)
    bench.repo.commit("Leave the rules as they are")
    assert bench.reconcile().outcomes["prod"].state == "Ready"
    assert bench.served() == {"mail": "1.1.0"}


def test_what_another_environment_serves_makes_nothing_a_rollback(bench: Bench) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        bench.repo.release("dev", "mail", version)
        bench.reconcile()
    for version in ("1.0.0", "1.1.0", "1.0.0"):
        bench.repo.environment("prod", {"mail": version})
        bench.repo.commit(f"Release {version} to prod")
        bench.reconcile()
    with bench.store.read() as tx:
        kinds = [item.kind.value for item in releases.list_promotions(tx, "prod")]
    assert kinds == ["rollback", "promote", "promote"]
