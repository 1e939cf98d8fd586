"""Which ways to a privileged call are ungated, shape by shape."""

import pytest

from kneo.spec.documents import Diagnostic
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec

ASK = {"id": "ask", "kind": "human", "ref": "boss"}
FIRE = {"id": "fire", "kind": "function", "ref": "fire"}
CALM = {"id": "calm", "kind": "function", "ref": "calm"}


def judge(workflow: object = None, *, humans: dict | None = None, **rest: object) -> list[Diagnostic]:
    components = {
        "functions": {
            "fire": {"implementation": "app.fire", "capabilities": ["shell"]},
            "calm": {"implementation": "app.calm"},
        },
        "humans": {"boss": {"description": "May I?"}, **(humans or {})},
        **rest.pop("components", {}),
    }
    spec = {"agent": {"name": "root"}, "components": components, **rest}
    if workflow is not None:
        spec["workflow"] = workflow
    return [d for d in check(Spec.model_validate(spec)) if d.code in {"E_PRIVILEGED_UNGATED", "W_PRIVILEGED_DIRECT"}]


def ungated(workflow: object = None, **rest: object) -> list[str | None]:
    return [d.path_text for d in judge(workflow, **rest)]


def human(**fields: object) -> dict:
    return {"boss": {"description": "May I?", **fields}}


def gated(step: dict, **gate: object) -> dict:
    return {**step, "review": {"before": gate or True}}


def family(kind: str, *steps: dict) -> dict:
    return {"type": kind, "participants": list(steps)}


def test_a_call_without_any_question() -> None:
    [found] = judge([CALM, FIRE])
    assert found.path_text == "workflow.steps[1]"
    assert found.is_error
    assert found.message == "fire calls function fire (shell) without an approval. Path: calm → fire."


@pytest.mark.parametrize("steps", [[ASK, FIRE], [CALM, ASK, CALM, FIRE], [gated(FIRE)], [ASK, CALM]])
def test_questions_before_a_call(steps: list[dict]) -> None:
    assert ungated(steps) == []


def test_a_deadline_of_the_step_counts_like_one_of_its_human() -> None:
    timed = {**ASK, "timeout_seconds": 60}
    assert ungated([timed, FIRE]) == []
    assert ungated([ASK, FIRE], humans=human(on_timeout="approve")) == []
    assert ungated([timed, FIRE], humans=human(on_timeout="approve")) == ["workflow.steps[1]"]


def test_a_deadline_of_the_step_that_decides_without_a_signature_is_refused() -> None:
    signed = {"receipt": "signed_by_reviewer", "on_timeout": "approve"}
    tree = {
        "agent": {"name": "root"},
        "components": {"humans": human(**signed)},
        "workflow": [{**ASK, "timeout_seconds": 60}],
    }
    found = [d for d in check(Spec.model_validate(tree)) if d.is_error]
    assert [(d.code, d.path_text) for d in found] == [("E_HUMAN_TIMEOUT_UNSIGNED", "workflow.steps[0].timeout_seconds")]


def test_questions_that_come_too_late_or_elsewhere() -> None:
    assert ungated([FIRE, ASK]) == ["workflow.steps[0]"]
    assert ungated([gated(CALM, on_reject="skip"), FIRE]) == ["workflow.steps[1]"]  # its rejection skips calm only
    assert ungated([gated(CALM), FIRE]) == []
    assert ungated([{**CALM, "review": {"after": {"on_reject": "skip"}}}, FIRE]) == ["workflow.steps[1]"]
    assert ungated([{**CALM, "review": {"after": True}}, FIRE]) == []
    assert ungated([{**CALM, "review": {"after": {"on_reject": "stop"}}}, FIRE]) == []
    assert ungated([{**CALM, "review": {"after": {"on_reject": "retry"}}}, FIRE]) == []
    assert ungated([{**CALM, "review": {"error": True}}, FIRE]) == ["workflow.steps[1]"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"on_reject": "continue"}, "goes on when it is rejected"),
        ({"on_reject": "skip"}, "goes on to the next step"),
        ({"timeout_seconds": 60, "on_timeout": "continue"}, "goes on after a timeout"),
        ({"timeout_seconds": 60, "on_timeout": "approve"}, "goes on after a timeout"),
        ({"timeout_seconds": 60, "on_timeout": "skip"}, "goes on to the next step"),
        ({"decisions": ["approved", "edited"]}, "cannot be answered with a rejection"),
    ],
)
def test_questions_that_do_not_count(fields: dict, words: str) -> None:
    [found] = judge([ASK, FIRE], humans=human(**fields))
    assert f"The question ask does not count: it {words}" in found.message


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_seconds": 60, "on_timeout": "escalate"},
        {"timeout_seconds": 60, "on_timeout": "reject"},
        {"timeout_seconds": 60, "on_timeout": "fail"},
        {"on_reject": "retry"},
        {"request_type": "freeform"},
        {"request_type": "selection", "options": ["a"]},
    ],
)
def test_questions_that_count(fields: dict) -> None:
    assert ungated([ASK, FIRE], humans=human(**fields)) == []


def test_a_gate_takes_what_it_does_not_say_from_its_human() -> None:
    weak = human(timeout_seconds=60, on_timeout="approve")
    assert ungated([gated(FIRE, human="boss")], humans=weak) == ["workflow.steps[0]"]
    assert ungated([gated(FIRE, human="boss", on_timeout="reject")], humans=weak) == []
    default = {"default": {"timeout_seconds": 60, "on_timeout": "continue"}}
    assert ungated([gated(FIRE)], humans=default) == ["workflow.steps[0]"]


def test_a_gate_that_asks_sometimes() -> None:
    sometimes = {"type": "output_contains", "value": "€"}
    [found] = judge([gated(FIRE, when=sometimes)])
    assert "review.before of fire does not count: it asks only when its condition holds." in found.message
    assert ungated([gated(FIRE, when=sometimes, sample=1)]) == []
    assert ungated([gated(FIRE, when={"type": "always"})]) == []


def test_a_gate_that_asks_sometimes_may_also_skip_the_questions_behind_it() -> None:
    group = {"id": "g", "kind": "steps", "steps": [CALM, ASK]}
    sometimes = {"type": "output_contains", "value": "€"}
    assert ungated([gated(group, when=sometimes, on_reject="skip"), FIRE]) == ["workflow.steps[1]"]
    assert ungated([gated(group, when=sometimes, on_reject="stop"), FIRE]) == []


def test_disabled_steps_neither_ask_nor_act() -> None:
    assert ungated([{**ASK, "enabled": False}, FIRE]) == ["workflow.steps[1]"]
    assert ungated([{**FIRE, "enabled": False}]) == []


def test_failures_that_go_on_pass_the_questions_they_hold() -> None:
    group = {"id": "g", "kind": "steps", "steps": [CALM, ASK]}
    assert ungated([group, FIRE]) == []
    assert ungated([{**group, "on_error": "continue"}, FIRE]) == ["workflow.steps[1]"]
    assert ungated([{**group, "on_error": "retry", "max_retries": 2}, FIRE]) == []


def test_a_question_fails_no_step() -> None:
    assert ungated([{**ASK, "on_error": "continue"}, FIRE]) == []


def test_people_who_may_skip_what_failed_skip_the_questions_in_it() -> None:
    group = {"id": "g", "kind": "steps", "steps": [CALM, ASK]}
    assert ungated([{**group, "review": {"error": True}}, FIRE]) == ["workflow.steps[1]"]
    assert ungated([{**group, "review": {"error": {"options": ["retry", "stop"]}}}, FIRE]) == []
    silent = {"options": ["retry", "stop"], "timeout": 60, "on_timeout": "skip"}
    assert ungated([{**group, "review": {"error": silent}}, FIRE]) == ["workflow.steps[1]"]


def test_a_fallback_is_reached_past_what_failed() -> None:
    risky = {**CALM, "on_error": "fallback", "fallback_ref": "fire"}
    assert ungated([risky, ASK, FIRE]) == ["workflow.steps[2]"]
    assert ungated([risky, ASK, gated(FIRE)]) == []
    assert ungated([gated(risky), ASK, FIRE]) == []


def parallel(*steps: dict) -> dict:
    return {"id": "p", "kind": "parallel", "steps": list(steps)}


def test_parallel_steps() -> None:
    assert ungated([parallel(ASK, FIRE)]) == ["workflow.steps[0].steps[1]"]
    assert ungated([parallel(ASK, CALM), FIRE]) == []
    assert ungated([{**parallel(ASK, CALM), "on_error": "continue"}, FIRE]) == ["workflow.steps[1]"]


def test_conditions() -> None:
    def choice(steps: list, otherwise: list, **rest: object) -> dict:
        return {"id": "c", "kind": "condition", "when": {"type": "never"}, "steps": steps, "else": otherwise, **rest}

    assert ungated([choice([ASK], []), FIRE]) == ["workflow.steps[1]"]
    assert ungated([choice([ASK], [ASK]), FIRE]) == []
    decided = {"review": {"before": True}}
    assert ungated([choice([FIRE], [CALM], **decided)]) == []
    assert ungated([choice([CALM], [FIRE], **decided)]) == ["workflow.steps[0].else[0]"]
    silent = {"review": {"before": {"timeout": 60, "on_timeout": "skip"}}}
    assert ungated([choice([CALM], [ASK], **silent), FIRE]) == ["workflow.steps[1]"]
    assert ungated([choice([CALM], [ASK], **decided), FIRE]) == []
    stopped = {"review": {"before": {"on_reject": "stop"}}}
    assert ungated([choice([CALM], [FIRE], **stopped), FIRE]) == []


def test_loops_and_groups() -> None:
    loop = {"id": "l", "kind": "loop", "steps": [FIRE, ASK]}
    assert ungated([loop]) == ["workflow.steps[0].steps[0]"]
    each = {"id": "l", "kind": "loop", "steps": [CALM], "review": {"each": {"on_reject": "stop"}}}
    assert ungated([each, FIRE]) == []
    each = {"id": "l", "kind": "loop", "steps": [CALM], "review": {"each": {"on_reject": "retry"}}}
    assert ungated([each, FIRE]) == []
    each = {"id": "l", "kind": "loop", "steps": [CALM], "review": {"each": {"on_reject": "skip"}}}
    assert ungated([each, FIRE]) == ["workflow.steps[1]"]
    each = {"id": "l", "kind": "loop", "steps": [CALM], "review": {"each": True}}
    assert ungated([each, FIRE]) == []


def test_routers() -> None:
    def router(**rest: object) -> dict:
        choices = {"one": {"steps": [CALM]}, "two": {"steps": [FIRE]}}
        return {"id": "r", "kind": "router", "choices": choices, **rest}

    assert ungated([router(selector={"default": "one"})]) == ["workflow.steps[0].choices.two.steps[0]"]
    assert ungated([router(review={"route": True})]) == []
    silent = {"timeout": 60, "on_timeout": "select:two"}
    assert ungated([router(review={"route": silent})]) == ["workflow.steps[0].choices.two.steps[0]"]
    assert ungated([router(review={"route": True}), FIRE]) == ["workflow.steps[1]"]
    held = {"id": "r", "kind": "router", "choices": {"one": {"steps": [ASK]}}, "review": {"route": True}}
    assert ungated([held, FIRE]) == []
    held["review"] = {"route": {"timeout": 60, "on_timeout": "skip"}}
    assert ungated([held, FIRE]) == ["workflow.steps[1]"]
    chooser = {"id": "r", "kind": "router", "choices": {"one": {"steps": [CALM]}}, "selector": "fire"}
    assert ungated([chooser]) == ["workflow.steps[0].selector.function"]


def graph(nodes: dict, edges: list[tuple], start: str = "a") -> dict:
    ways = [{"from": way[0], "to": way[1], "condition": {"type": way[2]} if way[2:] else None} for way in edges]
    return {"type": "graph", "start": start, "nodes": {k: {**n, "id": k} for k, n in nodes.items()}, "edges": ways}


def test_graphs() -> None:
    diamond = [("a", "b", "never"), ("a", "c"), ("b", "d"), ("c", "d")]
    assert ungated(graph({"a": CALM, "b": ASK, "c": CALM, "d": FIRE}, diamond)) == ["workflow.nodes.d"]
    assert ungated(graph({"a": CALM, "b": ASK, "c": ASK, "d": FIRE}, diamond)) == []
    assert ungated(graph({"a": ASK, "b": CALM, "c": CALM, "d": FIRE}, diamond)) == []
    back = [("a", "b"), ("b", "c"), ("c", "a")]
    assert ungated(graph({"a": CALM, "b": ASK, "c": FIRE}, back)) == []
    assert ungated(graph({"a": FIRE, "b": ASK, "c": CALM}, back)) == ["workflow.nodes.a"]


@pytest.mark.parametrize("kind", ["handoff", "group-chat"])
def test_participants_in_turn(kind: str) -> None:
    assert ungated(family(kind, ASK, FIRE)) == []
    assert ungated(family(kind, FIRE, ASK)) == ["workflow.participants[0]"]


def test_the_order_of_a_handoff() -> None:
    swapped = {**family("handoff", ASK, FIRE), "selector": {"sequence": ["fire", "ask"]}}
    assert ungated(swapped) == ["workflow.participants[1]"]
    left_out = {**family("handoff", ASK, FIRE), "selector": {"sequence": ["ask"]}}
    assert ungated(left_out) == []


def test_participants_at_once() -> None:
    assert ungated(family("concurrent", ASK, FIRE)) == ["workflow.participants[1]"]
    inner = {"inner": family("concurrent", ASK, CALM)}
    nested = {"id": "n", "kind": "workflow", "ref": "inner"}
    assert ungated([nested, FIRE], components={"workflows": inner}) == []


def test_nested_workflows_are_entered_as_they_are_reached() -> None:
    inner = {"workflows": {"inner": [FIRE], "unused": [FIRE]}}
    nested = {"id": "n", "kind": "workflow", "ref": "inner"}
    [found] = judge([CALM, nested], components=inner)
    assert found.path_text == "components.workflows.inner.steps[0]"
    assert "Path: calm → n → fire." in found.message
    assert ungated([ASK, nested], components=inner) == []
    assert ungated([gated(nested)], components=inner) == []


def test_a_question_in_a_nested_workflow_counts_for_what_follows_it() -> None:
    inner = {"workflows": {"inner": [CALM, ASK]}}
    nested = {"id": "n", "kind": "workflow", "ref": "inner"}
    assert ungated([nested, FIRE], components=inner) == []
    assert ungated([{**nested, "on_error": "continue"}, FIRE], components=inner) == ["workflow.steps[1]"]


def tool(**fields: object) -> dict:
    return {"description": "d", "implementation": "app.t", "capabilities": ["network"], **fields}


def agent(name: str, **fields: object) -> dict:
    return {"name": name, "tools": {"include": ["t"], "permissions": fields}}


def run(name: str) -> dict:
    return {"id": name, "kind": "agent", "ref": name}


def test_tools_of_agents() -> None:
    worker = {"agents": {"w": agent("w")}}
    [found] = judge([run("w")], components=worker, tools={"t": tool()})
    assert "w calls tool t (network)" in found.message
    assert ungated([ASK, run("w")], components=worker, tools={"t": tool()}) == []
    assert ungated([run("w")], components=worker, tools={"t": tool(review={"before": True})}) == []
    assert ungated([run("w")], components=worker, tools={"t": tool(review={"external": True})}) == []
    assert ungated([run("w")], components=worker, tools={"t": tool(capabilities=["filesystem_read"])}) == []


def test_a_weak_gate_at_a_tool() -> None:
    sometimes = {"type": "output_contains", "value": "€"}
    worker = {"agents": {"w": agent("w")}}
    [found] = judge([run("w")], components=worker, tools={"t": tool(review={"before": {"when": sometimes}})})
    assert "The gate at tool t does not count: it asks only when its condition holds." in found.message


@pytest.mark.parametrize(
    "permissions",
    [
        {"allow_network": False},
        {"allow_network": True, "allowed_domains": ["example.com"]},
        {"denied_tools": ["t"]},
        {"allowed_tools": []},
    ],
)
def test_calls_that_cannot_happen_or_are_held_to_hosts(permissions: dict) -> None:
    worker = {"agents": {"w": agent("w", **permissions)}}
    assert ungated([run("w")], components=worker, tools={"t": tool()}) == []


def test_agents_behind_tools_and_workflows_behind_agents() -> None:
    agents = {
        "outer": {"name": "outer", "tools": {"include": ["helper"], "permissions": {}}},
        "inner": agent("inner"),
        "team": {"name": "team", "as_agent": "flow"},
    }
    tools = {"helper": {"description": "d", "agent": "inner"}, "t": tool()}
    [found] = judge([run("outer")], components={"agents": agents}, tools=tools)
    assert "outer calls tool helper → tool t (network)" in found.message
    flow = {"agents": agents, "workflows": {"flow": [FIRE]}}
    assert ungated([run("team")], components=flow, tools=tools) == ["components.workflows.flow.steps[0]"]
    tools["helper"]["agent"] = "team"
    assert ungated([run("outer")], components=flow, tools=tools) == ["components.workflows.flow.steps[0]"]
    tools["helper"]["review"] = {"before": True}
    assert ungated([run("outer")], components=flow, tools=tools) == []


def test_functions_that_guard_or_remember() -> None:
    guard = {"name": "w", "guardrails": {"input": [{"id": "g", "type": "function", "ref": "fire"}]}}
    assert ungated([run("w")], components={"agents": {"w": guard}}) == ["workflow.steps[0]"]
    memory = {"name": "w", "memory": {"policy": "retrieval", "retriever": {"ref": "fire"}}}
    assert ungated([run("w")], components={"agents": {"w": memory}}) == ["workflow.steps[0]"]


def test_the_root_agent_by_itself() -> None:
    assert ungated(agent=agent("root"), tools={"t": tool()}) == ["agent"]
    [found] = judge([ASK, run("root")], agent=agent("root"), tools={"t": tool()})
    assert (found.code, found.path_text) == ("W_PRIVILEGED_DIRECT", "agent.tools")
    [found] = judge([ASK, run("root")], agent=agent("root"), tools={"t": tool()}, targets=["workflow", "agent"])
    assert (found.code, found.path_text) == ("E_PRIVILEGED_UNGATED", "agent")
    assert ungated([ASK], agent=agent("root"), tools={"t": tool(review={"before": True})}) == []


def test_circles_end() -> None:
    workflows = {
        "a": [{"id": "n", "kind": "workflow", "ref": "b"}, FIRE],
        "b": [{"id": "n", "kind": "workflow", "ref": "a"}],
    }
    assert ungated([{"id": "n", "kind": "workflow", "ref": "a"}], components={"workflows": workflows})


def called(review: dict, **more: object) -> list[str]:
    tool = {"description": "Delete a branch.", "capabilities": ["privileged"], "review": review}
    spec = {
        "targets": ["call"],
        "agent": {"name": "root", "tools": {"include": ["delete"], "permissions": {}}},
        "tools": {"delete": tool},
        **more,
    }
    return [one.code for one in judge(**spec)]


def test_a_call_that_its_caller_makes_needs_an_approval() -> None:
    assert called({"external": {"human": "caller"}}) == ["E_PRIVILEGED_UNGATED"]
    assert called({"before": True, "external": {"human": "caller"}}) == []
    assert called({"external": True}) == []


def test_a_target_call_begins_at_the_root_agent_past_the_workflow() -> None:
    steps = [{"id": "ask", "kind": "human", "ref": "boss"}]
    workflow = {"type": "sequential", "steps": steps}
    assert called({"external": {"human": "caller"}}, workflow=workflow) == ["E_PRIVILEGED_UNGATED"]
