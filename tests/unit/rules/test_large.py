"""Specs that are large or made to be slow: the rules end, soon, and without running out of stack."""

from __future__ import annotations

from time import process_time

import pytest

from kneo.spec.diff import diff
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec

MANY = 3_000
SECONDS = 5.0  # each takes well under one; a square of the size would take minutes


def nested(name: str) -> dict:
    return {"id": "n", "kind": "workflow", "ref": name}


def fire(number: int = 0, **fields: object) -> dict:
    return {"id": f"s{number}", "kind": "function", "ref": "fire", **fields}


def wrong_names() -> dict:
    return {"workflow": [{"id": f"s{n}", "kind": "agent", "ref": f"agemt{n}"} for n in range(MANY)]}


def ungated_calls() -> dict:
    return {"workflow": [fire(n) for n in range(MANY)]}


def chain_of_workflows() -> dict:
    workflows = {f"w{n}": [nested(f"w{n + 1}")] for n in range(MANY)}
    return {"workflow": [nested("w0")], "components": {"workflows": {**workflows, f"w{MANY}": [fire()]}}}


def circle_of_workflows() -> dict:
    workflows = {f"w{n}": [nested(f"w{(n + 1) % MANY}")] for n in range(MANY)}
    return {"workflow": [nested("w0")], "components": {"workflows": workflows}}


def doubling_workflows() -> dict:
    workflows = {f"w{n}": [{**nested(f"w{n + 1}"), "id": side} for side in "ab"] for n in range(100)}
    return {"workflow": [nested("w0")], "components": {"workflows": {**workflows, "w100": [fire()]}}}


def chain_of_agents() -> dict:
    tools = {f"t{n}": {"description": "d", "agent": f"a{n + 1}"} for n in range(MANY)}
    agents = {f"a{n}": {"name": f"a{n}", "tools": {"include": [f"t{n}"]}} for n in range(MANY)}
    return {
        "workflow": [{"id": "s", "kind": "agent", "ref": "a0"}],
        "components": {"agents": {**agents, f"a{MANY}": {"name": "last", "tools": {"include": ["t"]}}}},
        "tools": {**tools, "t": {"description": "d", "implementation": "app.t", "capabilities": ["shell"]}},
    }


def long_graph() -> dict:
    nodes = {f"n{n}": {"id": f"n{n}", "kind": "function", "ref": "fire"} for n in range(MANY)}
    edges = [{"from": f"n{n}", "to": f"n{n + 1}"} for n in range(MANY - 1)]
    return {"workflow": {"type": "graph", "start": "n0", "nodes": nodes, "edges": edges}}


def stand_ins() -> dict:
    steps = [fire(n, on_error="fallback", fallback_ref=f"s{(n * 7 + 1) % MANY}") for n in range(MANY)]
    return {"workflow": steps}


def chained_stand_ins() -> dict:
    steps = [fire(n, on_error="fallback", fallback_ref=f"s{n + 1}") for n in range(MANY)]
    return {"workflow": [*steps, fire(MANY)]}


def deep_routers() -> dict:
    step = fire()
    for n in range(12):
        inner = [{**step, "id": "a"}] if n else [step]
        step = {"id": f"r{n}", "kind": "router", "choices": {"x": {"steps": inner}}, "review": {"route": True}}
    return {"workflow": [step]}


def slow_patterns() -> dict:
    words = "|".join(f"w{n:03}" for n in range(200))
    items = [
        {"id": f"g{n}", "type": "regex", "config": {"patterns": [f"(?:{words}|{n}x)*"]}} for n in range(MANY // 10)
    ]
    return {"agent": {"name": "root", "guardrails": {"input": items}}}


@pytest.mark.parametrize(
    "make",
    [
        wrong_names,
        ungated_calls,
        chain_of_workflows,
        circle_of_workflows,
        doubling_workflows,
        chain_of_agents,
        long_graph,
        stand_ins,
        chained_stand_ins,
        deep_routers,
        slow_patterns,
    ],
)
def test_cost_stays_in_proportion(make: object) -> None:
    tree = {"agent": {"name": "root"}, **make()}
    functions = {"fire": {"implementation": "app.fire", "capabilities": ["shell"]}}
    tree["components"] = {"functions": functions, **tree.get("components", {})}
    spec = Spec.model_validate(tree)
    begun = process_time()
    findings = check(spec)
    assert len(findings) <= 3 * MANY
    assert sum(len(found.message) for found in findings) < 500 * (len(findings) + 1)
    assert process_time() - begun < SECONDS
    diff(None, spec).to_text()
    diff(spec, spec)
    assert process_time() - begun < 2 * SECONDS
