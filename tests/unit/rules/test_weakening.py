"""What counts as asking for less: every part of an environment's file, one at a time."""

from __future__ import annotations

import json

import pytest

from kneo.controller.differences import policy_difference
from kneo.spec.diff.weakening import WEAKER_CHANGES, find_weakenings, weakenings
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Approvals, Environment, EnvironmentSpec, Signatures
from kneo.spec.policy import CallRule, McpRules, ModelRules, ProtocolRules, SandboxRules, ToolRules
from kneo.spec.reading.validate import InvalidDeclaration

DIGEST = "sha256:" + "1" * 64
REQUIRED = {"metric": "pass_rate", "atLeast": 0.95, "minSamples": 40, "notWorseThan": "current", "margin": 0.02}
UNSAFE = {"metric": "unsafe", "atMost": 0.1, "minSamples": 20}
FAILED = {"metric": "failed", "atMost": 0.1}
EVIDENCE: dict[str, object] = {
    "name": "support",
    "suite": {"name": "support", "digest": "sha256:" + "1" * 64},
    "signers": {"role": "evaluator"},
    "require": [REQUIRED],
}

STRICT: dict[str, object] = {
    "policy": {"enabled": True, "require_guardrails": True, "fail_on_warnings": True, "blocked_diagnostic_codes": ["W_X"]},
    "signatures": {"accept": ["dsse"], "roles": ["release"], "threshold": 2},
    "approvals": {"required": 2, "roles": ["approver"], "exclude": ["bundle_signer", "author"], "expires": "7d", "signed": True},
    "people": {"ann": {"roles": ["editor"], "groups": ["editors"], "slack": "T1/U1"}},
    "windows": [{"deny": "Fri 16:00 - Mon 08:00"}, {"allow": "* 06:00 - 20:00"}],
    "promoteFrom": "staging",
    "soak": "24h",
    "evidence": [EVIDENCE],
    "recordings": {"use": ["rehearsal"], "redact": "personal", "maxAge": "7d"},
    "prune": {"maxPercent": 20},
    "atomic": True,
    "inlineSpecs": False,
    "allowSelf": False,
    "code": "bundled",
    "packages": "same",
    "questions": {"approvals": 2, "exclude": ["requester"], "denyOnTimeout": ["approve"], "receipt": "signed_by_reviewer",
                  "context": "none"},
    "implementations": {"acme.mail": DIGEST},
    "humans": {"finance": {"description": "Pay?", "candidates": {"users": ["ann"]}}},
    "gates": [{"name": "money", "match": {"capabilities": ["network"]}, "before": {"human": "finance"}}],
    "access": [{"who": {"groups": ["payments"]}, "may": ["viewer", "human:write"]}],
    "admins": False,
    "quotas": {"queued": 10},
    "models": {
        "allow": [{"provider": "openai", "names": ["gpt-5*"]}],
        "connections": {"openai": {"api_key_ref": "PROD_KEY", "base_url": "https://gateway.example/v1"}},
        "hosts": ["models.example"],
        "limits": [{"provider": "openai", "concurrency": 4, "requests_per_minute": 10, "tokens_per_minute": 100}],
        "budgets": [{"per": "run", "tokens": 1000}, {"per": "day", "cost": 50}],
        "prices": {"my-model": {"input": 0.2, "output": 0.8}},
    },
    "tools": {
        "deny": ["shell", {"tools": ["refund"], "when": "args.amount > 5000"}],
        "unattended": [{"tools": ["refund"], "when": "args.amount <= 100"}],
        "allow": ["crm_*"],
        "inside": ["crm.internal:8443"],
        "mcp": {"commands": ["/usr/bin/crm-mcp"], "hosts": ["mcp.example"], "pinned": True},
        "sandbox": {"required": "kernel", "trusted": ["total"], "limits": {"net": ["*.example:443"], "memory": "1Gi"}},
    },
    "grants": [{"tools": ["refund"], "when": "args.amount <= 500", "uses": 100, "usesPerDay": 20, "usesPerRun": 5,
                "total": {"amount": 5000}, "expires": "30d", "signed": True, "spotChecks": 0.1}],
    "protocols": {
        "a2a": ["research-*"],
        "mcp": ["research-*"],
        "calls": [{"bundle": "pay", "callers": {"users": ["bot"]}, "tools": ["lookup"]}],
    },
}  # fmt: skip


def models(**changes: object) -> dict[str, object]:
    return {**dict(STRICT["models"]), **changes}  # type: ignore[call-overload]


def tools(**changes: object) -> dict[str, object]:
    return {**dict(STRICT["tools"]), **changes}  # type: ignore[call-overload]


def mcp(**changes: object) -> dict[str, object]:
    return tools(mcp={**dict(tools()["mcp"]), **changes})  # type: ignore[call-overload]


UNATTENDED = {"tools": ["refund"], "when": "args.amount <= 100"}
OVER = {"tools": ["refund"], "when": "args.amount > 5000"}


def grant(**changes: object) -> list[object]:
    [strict] = STRICT["grants"]  # type: ignore[misc]
    return [{**strict, **changes}]


def limit(**changes: object) -> dict[str, object]:
    strict = {"provider": "openai", "concurrency": 4, "requests_per_minute": 10, "tokens_per_minute": 100}
    return models(limits=[{**strict, **changes}])


def calls(**changes: object) -> dict[str, object]:
    protocols = STRICT["protocols"]
    (rule,) = protocols["calls"]
    changed = {name: value for name, value in (rule | changes).items() if value is not None}
    return {**protocols, "calls": [changed]}


LOOSER: dict[str, list[object]] = {
    "access": [
        [{"who": {"groups": ["payments"]}, "may": ["viewer", "human:write", "runs:content"]}],
        [{"who": {"groups": ["payments"], "users": ["eve"]}, "may": ["viewer"]}],
        [{"who": {"groups": ["payments"]}, "may": ["admin"]}],
    ],
    "admins": [True],
    "quotas": [
        {},
        {"queued": 11},
    ],
    "policy": [{"enabled": False}, {"enabled": True}],
    "signatures": [
        {"accept": ["dsse"], "roles": ["release"], "threshold": 1},
        {"accept": ["dsse"], "roles": ["release", "intern"], "threshold": 2},
        {"accept": ["dsse", "hmac-v1"], "roles": ["release"], "threshold": 2},
    ],
    "approvals": [
        None,
        {"required": 0},
        {**dict(STRICT["approvals"]), "required": 1},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "roles": ["approver", "intern"]},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "exclude": ["author"]},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "expires": "8d"},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "signed": False},  # type: ignore[call-overload]
    ],
    "people": [
        {"ann": {"roles": ["editor", "approver"], "groups": ["editors"]}},
        {"bob": {"groups": ["approvers"]}},
        {"ann": {"roles": ["editor"], "groups": ["editors"], "slack": "T1/U2"}},
        {"ann": {"slack": "T1/U1"}, "bob": {"slack": "T1/U3"}},
    ],
    "windows": [
        [],
        [{"allow": "* 06:00 - 20:00"}],
        [{"deny": "Fri 16:00 - Mon 08:00"}],
        [{"allow": "* 00:00 - 24:00"}],
    ],
    "promoteFrom": [None, "dev"],
    "soak": ["1h"],
    "recordings": [
        {"use": ["rehearsal"], "redact": "secrets", "maxAge": "7d"},
        {"use": ["rehearsal"], "redact": "personal", "maxAge": "8d"},
    ],
    "prune": [{"maxPercent": 21}],
    "atomic": [False],
    "inlineSpecs": [True],
    "allowSelf": [True],
    "code": ["pinned", "any"],
    "packages": ["recorded"],
    "implementations": [{}, {"acme.mail": "sha256:" + "2" * 64}],
    "questions": [
        {**dict(STRICT["questions"]), "via": ["slack"]},  # type: ignore[call-overload]
        {},
        {**dict(STRICT["questions"]), "approvals": 1},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "exclude": ["bundle_signer"]},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "denyOnTimeout": ["skip"]},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "context": "calls"},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "receipt": None},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "receipt": "signed"},  # type: ignore[call-overload]
    ],
    "humans": [{"finance": {"description": "Pay?", "candidates": {"users": ["ann", "bob"]}}}],
    "gates": [
        [],
        [{"name": "money", "match": {"capabilities": ["network"], "refs": ["p*"]}, "before": {"human": "finance"}}],
        [{"name": "money", "match": {"capabilities": ["network"]}, "after": {"human": "finance"}}],
        [{"name": "coin", "match": {"capabilities": ["network"]}, "before": {"human": "finance"}}],
    ],
    "models": [
        {},
        models(allow=None),
        models(allow=[{"provider": "openai"}]),
        models(allow=[{"provider": "openai", "names": ["gpt-5*"]}, {"provider": "anthropic", "names": ["x"]}]),
        models(connections={}),
        models(connections={"openai": {"api_key_ref": "OTHER_KEY", "base_url": "https://gateway.example/v1"}}),
        models(connections={"openai": {"api_key_ref": "PROD_KEY", "base_url": "https://other.example/v1"}}),
        models(connections={**dict(models()["connections"]), "vllm": {"base_url": "https://x.example"}}),  # type: ignore[call-overload]
        models(hosts=["models.example", "other.example"]),
        models(limits=[]),
        limit(concurrency=5),
        limit(requests_per_minute=11),
        limit(tokens_per_minute=None),
        limit(provider="anthropic"),
        models(budgets=[{"per": "run", "tokens": 1000}]),
        models(budgets=[{"per": "run", "tokens": 1001}, {"per": "day", "cost": 50}]),
        models(budgets=[{"per": "run", "tokens": 1000}, {"per": "day", "cost": 51}]),
        models(budgets=[{"per": "run", "tokens": 1000}, {"per": "month", "cost": 50}]),
        models(budgets=[{"per": "run", "tokens": 1000, "on_exceeded": "ask"}, {"per": "day", "cost": 50}]),
        models(prices={}),
        models(prices={"my-model": {"input": 0.1, "output": 0.8}}),
        models(prices={"my-model": {"input": 0.2, "output": 0.7}}),
        models(prices={"my-model": {"input": 0.2, "output": 0.8}, "other": {"input": 0, "output": 0}}),
    ],
    "tools": [
        {},
        tools(deny=[]),
        tools(deny=["shell"]),
        tools(deny=[OVER]),
        tools(deny=["shell", {**OVER, "when": "args.amount > 6000"}]),
        tools(unattended=[UNATTENDED, {"tools": ["mail"], "when": "has(args.to)"}]),
        tools(unattended=[{**UNATTENDED, "when": "args.amount <= 50"}]),
        tools(unattended=[{**UNATTENDED, "tools": ["refund", "mail"]}]),
        tools(allow=None),
        tools(allow=["crm_*", "mail"]),
        tools(inside=["crm.internal:8443", "crm.internal:22"]),
        mcp(commands=["/usr/bin/crm-mcp", "/bin/sh"]),
        mcp(hosts=None),
        mcp(hosts=["mcp.example", "other.example"]),
        mcp(pinned=False),
    ],
    "grants": [
        [*grant(), *grant(tools=["mail"])],
        grant(uses=99),
        grant(usesPerDay=None),
        grant(usesPerRun=None),
        grant(total={}),
        grant(when=None),
        grant(expires="31d"),
        grant(signed=False),
        grant(spotChecks=0),
    ],
    "evidence": [
        [],
        [EVIDENCE | {"suite": {"name": "support", "digest": "sha256:" + "2" * 64}}],
        [EVIDENCE | {"type": "rehearsal", "suite": None, "environment": "staging", "require": [UNSAFE]}],
        [EVIDENCE | {"signers": {"role": "release"}}],
        [EVIDENCE | {"signers": {"role": "evaluator", "exclude": []}}],
        [EVIDENCE | {"allowScripted": True}],
        [EVIDENCE | {"maxAge": "31d"}],
        [EVIDENCE | {"require": [{**REQUIRED, "atLeast": 0.94}]}],
        [EVIDENCE | {"require": [{**REQUIRED, "minSamples": 39}]}],
        [EVIDENCE | {"require": [{**REQUIRED, "margin": 0.03}]}],
        [EVIDENCE | {"require": [{**REQUIRED, "metric": "judge.strict"}]}],
        [EVIDENCE | {"require": [{"metric": "pass_rate", "atLeast": 0.95, "minSamples": 40}]}],
    ],
    "protocols": [
        {**STRICT["protocols"], "a2a": ["research-*", "pay"]},
        {**STRICT["protocols"], "mcp": ["*"]},
        calls(bundle="*"),
        calls(callers={"users": ["bot", "ann"]}),
        calls(callers={"groups": ["bot"]}),
        calls(callers=None),
        calls(tools=["lookup", "refund"]),
        calls(tools=["*"]),
    ],
}

REHEARSAL: dict[str, object] = {
    "name": "rehearsal",
    "type": "rehearsal",
    "environment": "staging",
    "signers": {"role": "evaluator", "exclude": ["bundle_signer", "author"]},
    "require": [{"metric": "unsafe", "atMost": 0.1, "minSamples": 20}, {"metric": "gates_lost", "atMost": 0}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "would not need the evidence rehearsal"),
        ({"type": "canary", "require": [FAILED]}, "another suite, environment or role"),
        ({"environment": "dev"}, "another suite, environment or role"),
        ({"signers": {"role": "evaluator"}}, "author could sign the evidence rehearsal"),
        ({"maxAge": "31d"}, "would count for longer"),
        ({"require": [UNSAFE]}, "the requirement of gates_lost in the evidence rehearsal is removed or eased"),
        ({"require": [UNSAFE | {"atMost": 0.2}]}, "the requirement of unsafe"),
        ({"require": [{"metric": "unsafe", "minSamples": 20, "atLeast": 0}]}, "the requirement of unsafe"),
    ],
)
def test_eased_evidence_of_a_rehearsal_is_told(change: dict[str, object], message: str) -> None:
    before, after = environment(evidence=[REHEARSAL]), environment(evidence=[REHEARSAL | change])
    assert any(message in text for text in weakenings(before, after))
    stricter = REHEARSAL | {
        "maxAge": "7d",
        "require": [UNSAFE | {"atMost": 0, "minSamples": 21}, *REHEARSAL["require"]],
    }  # type: ignore[misc]
    assert not list(weakenings(before, environment(evidence=[stricter, EVIDENCE])))


FREE = {"releases", "suspend", "retired", "team"}
"""What a commit changes without anybody's leave: it is what commits are for."""


def environment(**changes: object) -> Environment:
    spec = {name: value for name, value in (STRICT | changes).items() if value is not None}
    said = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    return parse_environment(json.dumps(said).encode(), file="environments/prod.json")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in LOOSER.items() for value in values])
def test_every_way_to_ask_for_less_is_told(name: str, value: object) -> None:
    # Without an environment that it comes from, nothing can soak there.
    soak = {"soak": None} if name == "promoteFrom" else {}
    found = find_weakenings(environment(**soak), environment(**soak | {name: value}))
    assert found
    assert {each.key.partition(".")[0] for each in found} == {name}
    assert {each.key for each in found} <= WEAKER_CHANGES.keys(), "the reference names each key"


@pytest.mark.parametrize("name", list(LOOSER))
def test_asking_for_the_same_or_for_more_passes(name: str) -> None:
    assert weakenings(environment(), environment()) == ()
    if name != "signatures":
        loose = environment(
            **{"soak": None, name: LOOSER[name][0]} if name == "promoteFrom" else {name: LOOSER[name][0]}
        )
        # Windows that were moved, humans and connections cannot be compared, and more people, addresses and commands allow more.
        assert not weakenings(loose, environment()) or name in {"people", "windows", "humans", "models", "tools"}


def test_no_part_of_an_environment_is_forgotten() -> None:
    protocols = STRICT["protocols"]
    for rules, said in (
        (ModelRules, models()),
        (ToolRules, tools()),
        (McpRules, mcp()["mcp"]),
        (SandboxRules, tools()["sandbox"]),
        (ProtocolRules, protocols),
        (CallRule, UNATTENDED),
    ):
        assert set(rules.model_fields) == set(said)  # type: ignore[call-overload]
    parts = {field.alias or name for name, field in EnvironmentSpec.model_fields.items()}
    assert parts == {*LOOSER, *FREE}
    assert set(Approvals.model_fields) == set(dict(STRICT["approvals"]))  # type: ignore[call-overload]
    assert set(Signatures.model_fields) == set(dict(STRICT["signatures"]))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", tools(deny=["shell", OVER, "*.delete_*"])),
        ("tools", tools(allow=[], inside=[])),
        ("tools", mcp(commands=[], hosts=[])),
        ("models", models(hosts=[], allow=[])),
        ("models", limit(concurrency=1, requests_per_minute=1, tokens_per_minute=1)),
        (
            "models",
            models(
                budgets=[
                    {"per": "run", "tokens": 1, "cost": 1},
                    {"per": "day", "cost": 1},
                    {"per": "month", "tokens": 9},
                ]
            ),
        ),
        ("models", models(prices={"my-model": {"input": 2, "output": 8}})),
        ("protocols", {"a2a": [], "mcp": [], "calls": []}),
    ],
)
def test_tightened_rules_of_models_and_tools_wait_for_nothing(name: str, value: object) -> None:
    assert weakenings(environment(), environment(**{name: value})) == ()


def changes(**after: object) -> list[tuple[object, object, object, object]]:
    found = policy_difference(environment(), environment(**after))
    return [(each["field"], each["from"], each["to"], each["direction"]) for each in found]


def test_rules_for_models_and_tools_are_compared_field_by_field() -> None:
    assert changes(tools=tools(deny=["shell", OVER, "mail"], inside=[])) == [
        ("tools.deny", ["shell", OVER], ["shell", OVER, "mail"], "tightened"),
        ("tools.inside", ["crm.internal:8443"], [], "tightened"),
    ]
    assert changes(tools=mcp(pinned=False, commands=[])) == [
        ("tools.mcp.commands", ["/usr/bin/crm-mcp"], [], "tightened"),
        ("tools.mcp.pinned", True, False, "loosened"),
    ]
    [budget] = changes(models=models(budgets=[{"per": "run", "tokens": 2000}, {"per": "day", "cost": 50}]))
    assert (budget[0], budget[3]) == ("models.budgets", "loosened")
    [prices] = changes(models=models(prices={"my-model": {"input": 0.1, "output": 0.8}}))
    assert (prices[0], prices[3]) == ("models.prices", "loosened")


def finance(**human: object) -> dict[str, object]:
    return {"finance": {"description": "Pay?", "candidates": {"users": ["ann"]}} | human}


MONEY = {"name": "money", "match": {"capabilities": ["network"]}, "before": {"human": "finance"}}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"humans": finance(candidates={"users": ["ann", "eve"]})}, "eve may now decide at the human finance."),
        ({"humans": finance(timeout_seconds=5)}, "Timeout_seconds of the human finance is 5."),
        ({"humans": finance() | {"lead": {"candidates": {"roles": ["lead"]}}}}, "The human lead is new: role lead (1 approval)."),
        ({"gates": [MONEY | {"before": {"human": {"candidates": {"users": ["ann", "eve"]}}}}]}, "Human of the gate money changes."),
        ({"gates": []}, "The gate money is gone."),
        ({"gates": [MONEY, MONEY | {"name": "more"}]}, "The gate more is new: before: asks finance."),
        ({"gates": [MONEY | {"match": {"tools": ["pay"]}}]}, "Match.capabilities.network of the gate money is no longer 'network'."),
        ({"people": {"ann": {"roles": ["editor", "approver"], "groups": ["editors"]}}}, "ann gets the role approver."),
        ({"people": {}}, "ann is no longer in people: group editors, role editor."),
        ({"tools": tools(deny=[OVER])}, "tools.deny loses shell."),
        ({"tools": tools(deny=["shell"])}, "tools.deny loses refund when args.amount > 5000."),
        ({"tools": tools(unattended=[])}, "tools.unattended loses refund when args.amount <= 100."),
        ({"grants": grant(uses=200)}, "grants changes."),
        ({"atomic": False}, "atomic changes from true to false."),
        ({"soak": "1h"}, "soak changes from 'P1D' to 'PT1H'."),
        ({"windows": []}, "windows changes."),
    ],
)  # fmt: skip
def test_a_changed_rule_is_told_in_words(after: dict[str, object], message: str) -> None:
    [found] = policy_difference(environment(), environment(**after))
    assert message in str(found["message"]), found
    assert "null" not in json.dumps(found)


def test_a_changed_rule_shows_what_looks_the_same() -> None:
    [found] = policy_difference(environment(), environment(humans=finance(description="Pay\u200b?")))
    assert found["lines"] == ["@@ -1,1 +1,1 @@", "-Pay?", "+Pay\\u200b?"]


def test_a_removed_rule_of_unattended_calls_or_grants_and_a_further_denial_pass() -> None:
    assert weakenings(environment(), environment(grants=[], tools=tools(unattended=[]))) == ()
    assert weakenings(environment(), environment(tools=tools(deny=["shell", OVER, "mail", UNATTENDED]))) == ()


def test_the_removal_of_all_rules_of_access_is_weaker_and_the_first_ones_are_not() -> None:
    with_rules, without = environment(admins=True), environment(access=None, admins=None)
    assert {each.key for each in find_weakenings(with_rules, without)} == {"access"}
    assert weakenings(without, with_rules) == ()


@pytest.mark.parametrize(
    "access",
    [
        [{"who": {}, "may": ["viewer"]}],
        [{"who": {"users": ["ann"]}, "may": ["vewer"]}],
        [{"who": {"roles": ["vewer"]}, "may": ["viewer"]}],
        [{"who": {"users": ["ann"]}, "may": []}],
        None,
    ],
)
def test_a_rule_of_access_that_means_nothing_is_refused(access: object) -> None:
    with pytest.raises(InvalidDeclaration):
        environment(access=access)
