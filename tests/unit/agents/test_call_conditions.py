"""Conditions by argument at calls: what the guard lets pass, denies and asks about, for arguments of every kind."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from agent_turns import House, decided, house, scripted_model
from hostile_arguments import OTHER, UNKNOWN
from rules_now import current

from kneo.agents.turn import PeopleRequired
from kneo.clock import ManualClock
from kneo.runtime.program.gates import compile_tool_gates, gate_id
from kneo.spec.coverage.calls import call_coverage
from kneo.spec.coverage.environment_gates import gates_of_calls_of_agent
from kneo.spec.index import SpecIndex
from kneo.spec.lint import check
from kneo.spec.models.environment import EnvironmentGate, GatedSpec
from kneo.spec.models.spec import Spec
from kneo.spec.policy import ToolRules
from kneo.spec.reading.load import load_tree

SMALL = "args.amount >= 0 && args.amount <= 100 && args.currency == 'EUR'"
BIG = "args.amount > 100 || args.currency != 'EUR'"
RULE = {"tools": ["refund"], "when": SMALL}


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


def tree(*, when: object = BIG, capabilities: tuple[str, ...] = ("privileged",), **gate: object) -> dict:
    return {
        "version": "v1",
        "agent": {
            "name": "root",
            "model": {"provider": "openai", "name": "m"},
            "strategy": "react",
            "tools": {"include": ["refund"], "permissions": {}},
        },
        "tools": {
            "refund": {
                "description": "Refunds an order.",
                "implementation": "shop.refund",
                "capabilities": list(capabilities),
                "review": {"before": {"when": when, **gate}},
            }
        },
    }


def spec_of(**gate: object) -> Spec:
    spec = load_tree(tree(**gate)).spec
    assert spec is not None
    return spec


def refunding(
    arguments: Mapping[str, object], rules: Mapping[str, object], clock: ManualClock, spec: Spec | None = None
) -> tuple[House, dict[str, ToolRules]]:
    spec = spec or spec_of()
    now = {"now": ToolRules.model_validate(rules)}
    made = house([("refund", dict(arguments))], "Done.", spec=spec, clock=clock, rules=current(now))
    added = [gate_id(gate) for gate in gates_of_calls_of_agent(SpecIndex.of(spec))]
    known = {"values": {"amount": 50}, "run": {"requester": "ann", "environment": "prod", "workflow": None}}
    made.turn = type(made.turn)(
        **{
            **vars(made.turn),
            "gates": compile_tool_gates(spec).of_step(added, "seed", known),
            "facts": known,
            "environment": "prod",
        }
    )
    return made, now


def outcome(made: House, **answers: object) -> str:
    """Return what a call came to: ``made``, ``asked``, or the reason why it was refused."""
    try:
        asyncio.run(made.take(answers or None))  # type: ignore[arg-type]
    except PeopleRequired:
        return "asked"
    if made.backend.calls:
        return "made"
    [result] = made.script.results().values()
    return "denied" if "denied" in str(result) else str(result)


@pytest.mark.parametrize("arguments", [*UNKNOWN, *OTHER], ids=lambda each: json.dumps(each, default=str)[:60])
def test_only_a_call_that_is_definitely_accepted_is_not_asked_about(
    arguments: Mapping[str, object], clock: ManualClock
) -> None:
    made, _ = refunding(arguments, {"unattended": [RULE]}, clock)
    assert outcome(made) == "asked"


@pytest.mark.parametrize("arguments", UNKNOWN, ids=lambda each: json.dumps(each, default=str)[:60])
def test_a_gate_asks_where_its_condition_is_unknown_and_the_environment_accepts_every_call(
    arguments: Mapping[str, object], clock: ManualClock
) -> None:
    for capabilities in (("privileged",), ()):
        rules = {"unattended": [{"tools": ["*"], "when": "has(args)"}]}
        made, _ = refunding(arguments, rules, clock, spec_of(when=BIG, capabilities=capabilities))
        assert outcome(made) == "asked"


@pytest.mark.parametrize("arguments", UNKNOWN, ids=lambda each: json.dumps(each, default=str)[:60])
def test_unknown_denies(arguments: Mapping[str, object], clock: ManualClock) -> None:
    deny = {"tools": ["refund"], "when": "args.amount > 5000 || args.currency != 'EUR'"}
    made, _ = refunding(arguments, {"deny": [deny], "unattended": [{"tools": ["*"], "when": "has(args)"}]}, clock)
    assert outcome(made) == "denied"


@pytest.mark.parametrize("amount", [10**400, -(10**400), float("inf"), float("nan")])
def test_a_number_beyond_json_is_refused(amount: float, clock: ManualClock) -> None:
    made, _ = refunding({"amount": amount, "currency": "EUR"}, {"unattended": [{**RULE, "when": "has(args)"}]}, clock)
    assert "invalid_arguments" in outcome(made)


@pytest.mark.parametrize("amount", [0, 100, 99.99, 1e2])
def test_a_call_that_the_gate_and_the_environment_let_pass_is_made(amount: float, clock: ManualClock) -> None:
    made, _ = refunding({"amount": amount, "currency": "EUR"}, {"unattended": [RULE]}, clock)
    assert outcome(made) == "made"


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"unattended": [{**RULE, "tools": ["transfer"]}]},
        {"unattended": [{**RULE, "when": "args.amount < 10"}]},
        {"unattended": [{**RULE, "when": "args.other < 10"}]},
    ],
)
def test_a_privileged_call_asks_where_the_environment_accepts_none(rules: dict, clock: ManualClock) -> None:
    made, _ = refunding({"amount": 50, "currency": "EUR"}, rules, clock)
    assert outcome(made) == "asked"


def test_a_function_behind_a_tool_is_denied_by_its_name_and_accepted_by_none(clock: ManualClock) -> None:
    behind = {"tools": ["shop.refund", "shop.*"], "when": SMALL}
    for rules, expected in (({"unattended": [behind]}, "asked"), ({"deny": [behind], "unattended": [RULE]}, "denied")):
        made, _ = refunding({"amount": 50, "currency": "EUR"}, rules, clock)
        assert outcome(made) == expected


def test_a_call_that_is_not_privileged_needs_no_rule(clock: ManualClock) -> None:
    spec = spec_of(capabilities=())
    made, _ = refunding({"amount": 50, "currency": "EUR"}, {}, clock, spec)
    assert outcome(made) == "made"
    made, _ = refunding({"amount": 500, "currency": "EUR"}, {}, clock, spec)
    assert outcome(made) == "asked"


def test_a_rule_that_is_tightened_while_a_run_waits_asks_about_its_next_call(clock: ManualClock) -> None:
    replies = [("refund", {"amount": 500, "currency": "EUR"})], [("refund", {"amount": 50, "currency": "EUR"})], "Done."
    for rules, calls in (({"unattended": [RULE]}, 2), ({}, 1)):
        made, now = refunding({}, {"unattended": [RULE]}, clock)
        made.script = replace(made.script, replies={"root": replies})
        made.services = replace(made.services, models=made.script)
        [question] = asyncio.run(made.questions())
        now["now"] = ToolRules.model_validate(rules)
        assert outcome(made, **{question.key: decided("approved")}) == ("made" if calls == 2 else "asked")
        assert len(made.backend.calls) == calls


def test_a_call_that_a_person_edits_is_checked_again(clock: ManualClock) -> None:
    rules = {"deny": [{"tools": ["refund"], "when": "args.amount > 5000"}]}
    made, _ = refunding({"amount": 500, "currency": "EUR"}, rules, clock)
    [question] = asyncio.run(made.questions())
    edited = decided("edited", content='{"amount": 6000, "currency": "EUR"}')
    assert outcome(made, **{question.key: edited}) == "denied"
    made, _ = refunding({"amount": 500, "currency": "EUR"}, rules, clock)
    [question] = asyncio.run(made.questions())
    edited = decided("edited", content='{"amount": 400, "currency": "EUR"}')
    assert outcome(made, **{question.key: edited}) == "made"


@pytest.mark.parametrize(
    ("deny", "found"), [([], "asked"), ([{"tools": ["refund"], "when": "args.currency != 'EUR'"}], "denied")]
)
def test_arguments_that_a_guardrail_changes_are_checked_again(deny: list, found: str, clock: ManualClock) -> None:
    check = {"id": "codes", "type": "regex", "action": "redact", "config": {"patterns": ["EUR"]}}
    written = tree()
    written["agent"]["guardrails"] = {"tool": [check]}
    spec = load_tree(written).spec
    made, _ = refunding({"amount": 50, "currency": "EUR"}, {"unattended": [RULE], "deny": deny}, clock, spec)
    assert outcome(made) == found


def test_a_gate_with_an_expression_asks_before_the_caller_makes_the_call(clock: ManualClock) -> None:
    written = tree()
    written["tools"]["refund"]["review"]["external"] = "caller"
    spec = load_tree(written).spec
    assert spec is not None
    for amount, rules, found in (
        (500, {"unattended": [RULE]}, "tools.refund.before"),
        (50, {}, "tools.refund.before"),
        (50, {"unattended": [RULE]}, "tools.refund.external"),
    ):
        made, _ = refunding({"amount": amount, "currency": "EUR"}, rules, clock, spec)
        [question] = asyncio.run(made.questions())
        assert question.gate == found
        if found.endswith("before"):
            [next_one] = asyncio.run(made.questions({question.key: decided("approved")}))
            assert next_one.gate == "tools.refund.external"


def test_only_what_was_approved_earlier_is_paid(clock: ManualClock) -> None:
    spec = spec_of(when="args.amount != values.amount")
    rules = {"unattended": [{"tools": ["refund"], "when": "args.amount == values.amount && run.requester == 'ann'"}]}
    assert outcome(refunding({"amount": 50}, rules, clock, spec)[0]) == "made"
    assert outcome(refunding({"amount": 51}, rules, clock, spec)[0]) == "asked"


def test_a_gate_that_asks_is_enough(clock: ManualClock) -> None:
    gate = EnvironmentGate.model_validate(
        {"name": "big", "match": {"kinds": ["tool"], "tools": ["refund"]}, "before": {"when": "args.amount > 10"}}
    )
    spec = GatedSpec(**dict(spec_of()), environment_gates=(gate,))
    made, _ = refunding({"amount": 50, "currency": "EUR"}, {}, clock, spec)
    [question] = asyncio.run(made.questions())
    assert question.gate == "environment.big.before"
    assert outcome(made, **{question.key: decided("approved")}) == "made"


# ---- objects and coverage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "codes", "coverage"),
    [
        ({}, [], "asked"),
        ({"when": {"type": "always"}}, [], "asked"),
        ({"sample": 1}, [], "asked"),
        ({"when": {"type": "metadata_equals", "key": "amount", "value": 5}}, ["E_PRIVILEGED_UNGATED"], "ungated"),
        ({"when": {"all_of": [{"type": "always"}, BIG]}}, ["E_PRIVILEGED_UNGATED"], "ungated"),
        ({"when": BIG}, [], "unattended"),
        ({"when": BIG, "sample": 0.1}, [], "unattended"),
        ({"when": {"type": "expression", "value": BIG}}, [], "unattended"),
        ({"when": BIG, "on_reject": "continue"}, ["E_REVIEW_REJECT"], None),
        ({"when": BIG, "timeout_seconds": 60, "on_timeout": "approve"}, ["E_PRIVILEGED_UNGATED"], "ungated"),
    ],
)
def test_an_expression_counts_for_coverage_and_objects_as_before(gate: dict, codes: list, coverage: str | None) -> None:
    gate = {"when": None, **gate}
    written = tree(**gate)
    if written["tools"]["refund"]["review"]["before"]["when"] is None:
        del written["tools"]["refund"]["review"]["before"]["when"]
    loaded = load_tree(written, rules=check)
    assert [found.code for found in loaded.diagnostics if found.is_error] == codes
    if coverage is not None and loaded.spec is not None:
        index = SpecIndex.of(loaded.spec)
        [found] = call_coverage(index, ToolRules.model_validate({"unattended": [RULE]}))
        assert found.coverage == coverage
        assert found.when == (SMALL if coverage == "unattended" else None)
        [without] = call_coverage(index, ToolRules())
        assert without.coverage == ("asked" if coverage == "unattended" else coverage)


def test_an_expression_does_not_count_at_a_tool_with_an_agent_behind_it() -> None:
    written = tree()
    written["tools"]["ask"] = {
        "description": "Asks.",
        "agent": "helper",
        "review": {"before": {"when": "has(args.task)"}},
    }
    written["components"] = {"agents": {"helper": {**written["agent"], "name": "helper"}}}
    written["agent"] = {**written["agent"], "tools": {"include": ["ask"], "permissions": {}}}
    del written["tools"]["refund"]["review"]
    loaded = load_tree(written, rules=check)
    assert "E_PRIVILEGED_UNGATED" in {found.code for found in loaded.diagnostics}


def test_objects_ask_the_same_questions_as_before(clock: ManualClock) -> None:
    objects = [
        {"type": "metadata_equals", "key": "amount", "value": 5},
        {"not": {"type": "output_contains", "value": "EUR"}},
        {"any_of": [{"type": "never"}, {"type": "output_contains", "value": "9"}]},
    ]
    calls = [{"amount": 5, "currency": "EUR"}, {"amount": 9}, {"amount": 6, "currency": "EUR"}]
    asked = [
        outcome(refunding(arguments, {}, clock, spec_of(when=when))[0])
        for when, arguments in itertools.product(objects, calls)
    ]
    assert asked == ["asked", "made", "made", "made", "asked", "made", "made", "asked", "made"]
