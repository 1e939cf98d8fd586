"""Declarations of tools: their backing, their effects, and the rejections of their gates."""

from __future__ import annotations

import json

import pytest

from kneo.spec.coverage.environment_gates import guarded_steps
from kneo.spec.coverage.policy import check_policy, policy_report
from kneo.spec.environment import parse_environment
from kneo.spec.gates import rejection_effect
from kneo.spec.index import SpecIndex
from kneo.spec.lint import check
from kneo.spec.models.environment import with_gates
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.policy import PolicyFlags
from kneo.spec.reading.load import load_tree
from kneo.spec.reading.validate import InvalidDeclaration
from kneo.spec.tool_kinds import REGISTERED, TOOL_KINDS

GET = {"url": "https://crm.example/{id}"}
AGENT = {"url": "https://agents.example/painter"}
POST = {"url": "https://crm.example", "method": "POST"}


def tool(**fields: object) -> Tool:
    return Tool.model_validate({"description": "A tool.", **fields})


@pytest.mark.parametrize(
    ("fields", "effects"),
    [
        ({}, False),
        ({"implementation": "acme.look"}, False),
        ({"capabilities": ["filesystem_read"]}, False),
        *(({"capabilities": [name]}, True) for name in ("filesystem_write", "shell", "privileged", "network")),
        *(({"capabilities": [name], "effects": False}, True) for name in ("filesystem_write", "shell", "privileged")),
        ({"capabilities": ["network"], "effects": False}, False),
        ({"http": GET}, False),
        ({"http": {**GET, "method": "HEAD"}}, False),
        ({"http": POST}, True),
        ({"http": POST, "effects": False}, False),
        ({"http": GET, "effects": True}, True),
        ({"a2a": AGENT}, True),
        ({"a2a": AGENT, "effects": False}, False),
        ({"extension": {"kind": "sqlite"}}, True),
        ({"extension": {"kind": "sqlite"}, "effects": False}, False),
        ({"effects": True}, True),
    ],
)
def test_effects_follow_from_capabilities_and_method(fields: dict[str, object], effects: bool) -> None:
    assert tool(**fields).has_effects is effects


BACKINGS: dict[str, object] = {
    "implementation": "acme.look",
    "http": GET,
    "mcp": {"server": "s"},
    "agent": "a",
    "a2a": AGENT,
    "extension": {"kind": "sqlite"},
    "script": {"skill": "orders", "file": "scripts/total.py"},
}


def test_every_field_for_what_is_behind_a_tool_has_its_kind() -> None:
    assert [*BACKINGS] == [*TOOL_KINDS]
    assert [tool(**{name: value}).kind for name, value in BACKINGS.items()] == [*TOOL_KINDS.values()]
    assert len({kind.name for kind in TOOL_KINDS.values()}) == len(TOOL_KINDS)
    assert tool().kind is REGISTERED
    assert tool(**BACKINGS).backings == tuple(TOOL_KINDS)


def test_an_http_tool_uses_the_network_whatever_it_declares() -> None:
    assert tool(http=GET).all_capabilities == ("network",)
    assert tool(http=GET, capabilities=["privileged", "network"]).all_capabilities == ("privileged", "network")
    assert tool(a2a=AGENT).all_capabilities == ("network",)


def findings(**fields: object) -> dict[str, str | None]:
    humans = {"boss": {"on_reject": fields.pop("human_rejects", None)}} if "human_rejects" in fields else {"boss": {}}
    tree = {
        "agent": {"name": "root"},
        "tools": {"t": {"description": "A tool.", **fields}},
        "components": {"humans": humans},
    }
    return {found.code: found.path_text for found in load_tree(tree, rules=check).diagnostics}


@pytest.mark.parametrize("effect", ["tell_agent", "stop", "fail"])
def test_a_rejection_at_a_tool_tells_the_agent_or_ends_the_run(effect: str) -> None:
    gate = {"before": {"human": "boss", "on_reject": effect}}
    assert "E_REVIEW_REJECT" not in findings(implementation="acme.t", review=gate)


@pytest.mark.parametrize("effect", ["cancel", "skip", "retry", "else", "continue"])
@pytest.mark.parametrize("position", ["before", "external"])
def test_other_rejections_at_a_tool_are_refused(position: str, effect: str) -> None:
    gate = {position: {"human": "boss", "on_reject": effect}}
    assert findings(implementation="acme.t", review=gate)["E_REVIEW_REJECT"] == f"tools.t.review.{position}.on_reject"


def test_no_agent_receives_the_rejection_of_a_step() -> None:
    step = {"id": "s", "kind": "agent", "ref": "root", "review": {"before": {"on_reject": "tell_agent"}}}
    diagnostics = load_tree({"agent": {"name": "root"}, "workflow": [step]}, rules=check).diagnostics
    assert {found.code for found in diagnostics} == {"E_REVIEW_REJECT"}


@pytest.mark.parametrize("effect", ["skip", "continue", "cancel"])
def test_a_shared_human_whose_rejection_is_impossible_at_a_tool_is_reported(effect: str) -> None:
    found = findings(implementation="acme.t", review={"before": {"human": "boss"}}, human_rejects=effect)
    assert found["W_FIELD_NO_EFFECT"] is not None
    assert rejection_effect("tool", effect) == "stop"


def test_the_effect_of_a_rejection() -> None:
    assert [rejection_effect("tool", effect) for effect in (None, "tell_agent", "stop", "fail")] == [
        "tell_agent",
        "tell_agent",
        "stop",
        "fail",
    ]
    assert [rejection_effect("before", effect) for effect in (None, "tell_agent", "skip")] == ["stop", "stop", "skip"]


@pytest.mark.parametrize(
    "other",
    [{"http": GET}, {"mcp": {"server": "s"}}, {"agent": "a"}, {"a2a": AGENT}],
    ids=["http", "mcp", "agent", "a2a"],
)
def test_a_tool_has_one_backing(other: dict[str, object]) -> None:
    assert "E_TOOL_MULTIPLE_BACKINGS" in findings(implementation="acme.t", **other)


PUBLIC = {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://agents.example/painter?key=1"},
        {"url": "https://agents.example/#painter"},
        {"url": "https://user:word@agents.example/"},
        {"url": "agents.example"},
        {**AGENT, "secret_headers": {"Authorization": "Bearer of-the-text"}},
        {**AGENT, "keys": [PUBLIC, {**PUBLIC, "d": "private"}]},
        {**AGENT, "keys": [{"kty": "oct", "k": "shared"}]},
        {**AGENT, "keys": [{}]},
    ],
)
def test_a_remote_agent_has_a_plain_address_named_secrets_and_public_keys(fields: dict[str, object]) -> None:
    assert "E_TOOL_A2A" in findings(a2a=fields)
    sound = {**AGENT, "secret_headers": {"Authorization": "Bearer ${KEY}"}, "keys": [PUBLIC]}
    assert not {"E_TOOL_A2A", "E_TOOL_NO_BACKING"} & findings(a2a=sound).keys()


def test_http_is_a_backing() -> None:
    assert not {"E_TOOL_MULTIPLE_BACKINGS", "E_TOOL_NO_BACKING"} & findings(http=GET).keys()
    assert "E_TOOL_NO_BACKING" in findings()


SPEC = {
    "agent": {"name": "root", "tools": {"include": ["pay", "look", "registered"], "permissions": {}}},
    "tools": {
        "pay": {"description": "Pays.", "implementation": "acme.pay", "capabilities": ["privileged"]},
        "look": {"description": "Looks.", "implementation": "acme.look"},
    },
}


def gated(match: dict[str, object], **gate: object) -> Spec:
    required = {"policy": {}, "signatures": {"roles": ["release"], "threshold": 1}}
    people = {"people": {"ann": {"roles": ["reviewer"]}}}
    added = {"gates": [{"name": "money", "match": match, "before": gate or True}]}
    file = {
        "apiVersion": "kneo/v1",
        "kind": "Environment",
        "metadata": {"name": "prod"},
        "spec": {**required, **people, **added},
    }
    environment = parse_environment(json.dumps(file).encode(), file="prod.json")
    return with_gates(Spec.model_validate(SPEC), environment.gates)


def test_an_environment_puts_a_gate_at_the_calls_of_a_tool() -> None:
    everything = gated({"kinds": ["tool"], "tools": ["*"]})
    assert guarded_steps(SpecIndex.of(everything), "money") == ["root → pay", "root → look", "root → registered"]
    # What a registered tool can do is not known: it may be privileged.
    privileged = gated({"kinds": ["tool"], "capabilities": ["privileged"]})
    assert guarded_steps(SpecIndex.of(privileged), "money") == ["root → pay", "root → registered"]
    others = gated({"kinds": ["tool"], "refs": ["another"]})
    assert guarded_steps(SpecIndex.of(others), "money") == []


def test_a_gate_at_calls_counts_for_coverage_review_and_policies() -> None:
    bare = Spec.model_validate(SPEC)
    guarded = gated({"kinds": ["tool"], "capabilities": ["privileged"]})
    assert "E_PRIVILEGED_UNGATED" in {found.code for found in check(bare)}
    assert "E_PRIVILEGED_UNGATED" not in {found.code for found in check(guarded)}
    flags = PolicyFlags(require_human_review=True)
    assert check_policy(bare, (), flags) != ()
    assert check_policy(guarded, (), flags) == ()
    listed = policy_report(guarded, ()).flat()["human_review"]
    assert isinstance(listed, dict)
    assert {"path": "agent.tools.pay", "human": None, "added": "money"} in listed["gates"]


def test_a_gate_of_an_environment_that_asks_sometimes_does_not_count() -> None:
    sometimes = gated({"kinds": ["tool"]}, when={"type": "metadata_equals", "key": "amount", "value": 5})
    [found] = [each for each in check(sometimes) if each.code == "E_PRIVILEGED_UNGATED"]
    assert "asks only when its condition holds" in found.message


@pytest.mark.parametrize(
    ("kinds", "gate", "words"),
    [
        (["tool"], {"on_reject": "skip"}, "one of tell_agent, stop, fail; left out: tell_agent"),
        (["tool", "function"], {"on_reject": "tell_agent"}, "one of stop, fail"),
        (["function"], {"on_reject": "tell_agent"}, "one of stop, cancel, skip, fail"),
        (["tool"], {"decisions": ["approved", "provided"]}, "the answers are approved, rejected, edited"),
        (["tool", "function"], {"decisions": ["edited", "rejected"]}, "the answers are approved, rejected"),
    ],
)
def test_what_a_gate_at_calls_cannot_do_is_refused(kinds: list[str], gate: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidDeclaration, match=words):
        gated({"kinds": kinds}, **gate)


@pytest.mark.parametrize("gate", [{"on_reject": "tell_agent"}, {"decisions": ["edited", "rejected"]}])
def test_what_a_gate_at_calls_can_do(gate: dict[str, object]) -> None:
    assert gated({"kinds": ["tool"]}, **gate)


def test_the_limits_of_a_tool_that_is_an_agent_have_no_effect() -> None:
    fields = {"timeout_seconds": 5, "retries": 1, "effects": True, "on_interrupted": "ask", "max_result_chars": 500}
    tree = {
        "agent": {"name": "root"},
        "tools": {
            "t": {"description": "Asks.", "agent": "expert", **fields},
            "u": {"description": "Asks.", "agent": "expert"},
        },
        "components": {"agents": {"expert": {"name": "expert"}}},
    }
    found = [each.path_text for each in load_tree(tree, rules=check).diagnostics if each.code == "W_FIELD_NO_EFFECT"]
    assert found == [f"tools.t.{name}" for name in ("timeout_seconds", "retries", "effects", "on_interrupted")]


def test_an_agent_that_is_a_workflow_has_no_answers_and_questions_of_its_own() -> None:
    agent = {"name": "root", "as_agent": "w", "output_schema": {"type": "object"}, "ask_question": "boss"}
    components = {"workflows": {"w": ["root"]}, "humans": {"boss": {}}}
    [found] = [
        each
        for each in load_tree({"agent": agent, "components": components}, rules=check).diagnostics
        if each.code == "E_AS_AGENT_FIELDS"
    ]
    assert "output_schema, ask_question" in found.message
