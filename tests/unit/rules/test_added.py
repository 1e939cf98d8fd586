"""Questions that an environment adds: what may be written, which steps they stand around, and what they prove."""

from __future__ import annotations

import json

import pytest

from kneo.spec.coverage.environment_gates import guarded_steps
from kneo.spec.coverage.policy import check_policy
from kneo.spec.environment import parse_environment
from kneo.spec.index import SpecIndex
from kneo.spec.lint import check
from kneo.spec.models.environment import Environment, with_gates
from kneo.spec.models.spec import Spec
from kneo.spec.policy import strictest
from kneo.spec.reading.validate import InvalidDeclaration

FINANCE = {"finance": {"candidates": {"roles": ["treasurer"]}, "on_reject": "stop"}}
PEOPLE = {"ann": {"roles": ["treasurer", "reviewer"]}}
EVERYWHERE = {"steps": ["*"]}


def environment(*gates: object, **spec: object) -> Environment:
    said = {
        "policy": {"enabled": True},
        "signatures": {"roles": ["release"], "threshold": 1},
        "people": PEOPLE,
        "humans": FINANCE,
        "gates": gates,
        **spec,
    }
    file = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": said}
    return parse_environment(json.dumps(file).encode(), file="environments/prod.json")


def gate(match: object = None, **places: object) -> dict[str, object]:
    asked = places if "before" in places or "after" in places else {"before": {"human": "finance", **places}}
    return {"name": "money", "match": EVERYWHERE if match is None else match, **asked}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (gate({}), "matches nothing"),
        ({"name": "money", "match": EVERYWHERE}, "asks nothing"),
        (gate(human="boss"), "asks boss, which is not under humans of this environment"),
        (gate(on_reject="retry"), "Here a rejection does one of stop, cancel, skip, fail"),
        (gate(on_reject="else"), "Here a rejection does one of"),
        (gate(on_reject="continue"), "Here a rejection does one of"),
        (gate(timeout_seconds=60, on_timeout="approve"), "goes on after a timeout"),
        (gate(timeout_seconds=60, on_timeout="continue"), "goes on after a timeout"),
        (gate(decisions=["approved"]), "cannot be answered with a rejection"),
        (gate(decisions=["approved", "rejected", "edited"]), "Here the answers are approved, rejected"),
        (gate(calendar="office"), "calendar is not supported"),
        (gate(fields=[{"name": "pin", "secret": True}]), "a secret field (pin)"),
        (gate(key="mine"), "is its position and name"),
        (gate({"kinds": ["loop", "agent"]}, after=True), "after means nothing for steps of kind loop"),
        (gate({"kinds": ["human"]}), "'agent', 'function'"),
        (gate({"capabilities": ["networks"]}), "Did you mean network?"),
        (gate(human={"candidates": {"groups": ["board"]}}), "No person under people is a candidate: board"),
    ],
)
def test_what_could_not_be_asked_answered_or_held_is_refused(wrong: object, words: str) -> None:
    with pytest.raises(InvalidDeclaration) as caught:
        environment(wrong)
    assert words in str([(found.message, found.suggestion) for found in caught.value.findings])


def test_a_gate_that_names_nobody_asks_the_default_human_or_else_a_reviewer() -> None:
    [named] = environment(gate(before=True), humans={"default": {"candidates": {"users": ["ann"]}}}).gates
    [role] = environment(gate(before=True)).gates
    assert named.before.human.candidates.users == ("ann",)
    assert role.before.human.candidates.roles == ("reviewer",)
    with pytest.raises(InvalidDeclaration, match="reviewer"):
        environment(gate(before=True), people={})


def test_two_gates_have_two_names() -> None:
    with pytest.raises(InvalidDeclaration, match="Two gates are called money"):
        environment(gate(), gate())


SPEC = Spec.model_validate(
    {
        "agent": {"name": "root", "tools": {"include": ["pay"]}},
        "tools": {
            "pay": {"description": "Pays.", "implementation": "app.pay", "capabilities": ["network"]},
            "ask": {"description": "Asks another.", "agent": "payer"},
        },
        "workflow": {
            "type": "sequential",
            "name": "main",
            "steps": [
                {"id": "draft", "kind": "agent", "ref": "writer"},
                {"id": "approve", "kind": "human", "ref": "boss"},
                {
                    "id": "both",
                    "kind": "parallel",
                    "steps": [
                        {"id": "fire", "kind": "function", "ref": "fire"},
                        {"id": "calm", "kind": "function", "ref": "calm"},
                    ],
                },
                {"id": "sub", "kind": "workflow", "ref": "inner"},
                {"id": "send", "kind": "agent", "ref": "asker"},
                {"id": "way", "kind": "router", "choices": {"a": {"steps": []}}, "selector": {"function": "fire"}},
            ],
        },
        "components": {
            "agents": {
                "writer": {"name": "writer"},
                "payer": {"name": "payer", "tools": {"include": ["pay"]}},
                "asker": {"name": "asker", "tools": {"include": ["ask"]}},
                "safe": {"name": "safe", "tools": {"include": ["pay"], "permissions": {"allow_network": False}}},
            },
            "workflows": {"inner": [{"id": "deep", "kind": "function", "ref": "fire"}]},
            "functions": {
                "fire": {"implementation": "app.fire", "capabilities": ["shell"]},
                "calm": {"implementation": "app.calm", "capabilities": ["filesystem_read"]},
            },
            "humans": {"boss": {"description": "May I?"}},
        },
    }
)


@pytest.mark.parametrize(
    ("match", "places"),
    [
        (EVERYWHERE, ["draft", "both/fire", "both/calm", "sub", "send", "way", "deep"]),
        ({"capabilities": ["shell"]}, ["both/fire", "way", "deep"]),
        ({"capabilities": ["network"]}, ["send"]),
        ({"capabilities": ["network", "filesystem_read"]}, ["both/calm", "send"]),
        ({"tools": ["p*"]}, ["send"]),
        ({"kinds": ["agent"]}, ["draft", "send"]),
        ({"kinds": ["parallel", "workflow"]}, ["both", "sub"]),
        ({"refs": ["fire", "w*"]}, ["draft", "both/fire", "way", "deep"]),
        ({"steps": ["both/*"]}, ["both/fire", "both/calm"]),
        ({"workflows": ["inner"]}, ["deep"]),
        ({"workflows": ["main"], "capabilities": ["shell"], "kinds": ["function"]}, ["both/fire"]),
        ({"steps": ["nowhere"]}, []),
    ],
)
def test_steps_are_chosen_by_everything_that_is_written(match: object, places: list[str]) -> None:
    view = SpecIndex.of(with_gates(SPEC, environment(gate(match)).gates))
    assert guarded_steps(view, "money") == places


def ungated(workflow: object, *gates: object) -> list[str | None]:
    components = {
        "functions": {
            "fire": {"implementation": "app.fire", "capabilities": ["shell"]},
            "calm": {"implementation": "app.calm"},
        }
    }
    spec = Spec.model_validate({"agent": {"name": "root"}, "workflow": workflow, "components": components})
    found = check(with_gates(spec, environment(*gates).gates))
    return [one.path_text for one in found if one.code == "E_PRIVILEGED_UNGATED"]


CALM = {"id": "calm", "kind": "function", "ref": "calm"}
FIRE = {"id": "fire", "kind": "function", "ref": "fire"}
SHELL = {"capabilities": ["shell"]}


@pytest.mark.parametrize(
    ("workflow", "gates", "open_"),
    [
        ([CALM, FIRE], [], ["workflow.steps[1]"]),
        ([CALM, FIRE], [gate(SHELL)], []),
        ([CALM, FIRE], [gate({"steps": ["calm"]})], []),
        ([CALM, FIRE], [gate({"steps": ["calm"]}, on_reject="skip")], ["workflow.steps[1]"]),
        ([CALM, FIRE], [gate({"steps": ["calm"]}, after={"human": "finance"})], []),
        (
            [CALM, FIRE],
            [gate({"steps": ["calm"]}, after={"human": "finance", "on_reject": "skip"})],
            ["workflow.steps[1]"],
        ),
        ([{**CALM, "on_error": "continue"}, FIRE], [gate({"steps": ["calm"]}, after={"human": "finance"})], []),
        ([{**FIRE, "review": {"before": {"on_reject": "continue"}}}], [], ["workflow.steps[0]"]),
        ([{**FIRE, "review": {"before": {"on_reject": "continue"}}}], [gate(SHELL)], []),
        ([FIRE], [gate(SHELL, sample=0.5)], ["workflow.steps[0]"]),
        ([FIRE], [gate(SHELL, when={"type": "output_contains", "value": "x"})], ["workflow.steps[0]"]),
        ([FIRE], [gate(SHELL, sample=0.5), {**gate(SHELL), "name": "always"}], []),
        ([{"id": "both", "kind": "parallel", "steps": [CALM, FIRE]}], [gate({"kinds": ["parallel"]})], []),
    ],
)
def test_what_an_environment_adds_counts_in_the_proof(workflow: object, gates: list[object], open_: list[str]) -> None:
    assert ungated(workflow, *gates) == open_


def test_a_gate_for_an_agent_holds_when_the_agent_is_run_by_itself() -> None:
    def direct(*gates: object) -> list[str]:
        found = check(with_gates(SPEC, environment(*gates).gates))
        return [one.code for one in found if one.code == "W_PRIVILEGED_DIRECT"]

    assert direct() == ["W_PRIVILEGED_DIRECT"]
    assert direct(gate({"workflows": ["*"], "tools": ["pay"]})) == ["W_PRIVILEGED_DIRECT"]
    assert direct(gate({"tools": ["pay"]})) == []


def test_a_policy_that_wants_a_person_asked_is_met() -> None:
    bare = Spec.model_validate({"agent": {"name": "root"}, "workflow": [{"id": "a", "kind": "agent", "ref": "root"}]})
    flags = strictest(environment(policy={"enabled": True, "require_human_review": True}).spec.policy)
    codes = [found.code for found in check_policy(bare, (), flags)]
    assert codes == ["E_ENV_POLICY_HUMAN_REVIEW"]
    assert check_policy(with_gates(bare, environment(gate()).gates), (), flags) == ()
