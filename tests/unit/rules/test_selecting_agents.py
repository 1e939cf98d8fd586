"""Agents that choose for routers: references, cycles, privileged calls, gates of environments and simulations."""

from __future__ import annotations

import pytest

from kneo.errors import Invalid
from kneo.runtime.program.compiler import compile_program
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree

MODEL = {"provider": "dummy", "name": "echo"}


def tree(selector: dict[str, object], **agents: object) -> dict[str, object]:
    choices = {"left": {"steps": ["a"]}, "right": {"steps": ["a"]}}
    return {
        "agent": {"name": "root", "model": MODEL},
        "workflow": [{"id": "route", "kind": "router", "selector": selector, "choices": choices}],
        "components": {
            "agents": {"a": {"name": "a", "model": MODEL}, **agents},
            "functions": {"f": {"implementation": "app.f"}},
        },
    }


def found(selector: dict[str, object]) -> list[tuple[str, str | None]]:
    diagnostics = load_tree(tree(selector), rules=check).diagnostics
    return [(each.code, each.path_text) for each in diagnostics]


def test_an_agent_that_exists_chooses() -> None:
    assert found({"agent": "a"}) == []


def test_an_unknown_agent_is_an_error() -> None:
    assert found({"agent": "b"}) == [("E_STEP_AGENT_REF", "workflow.steps[0].selector.agent")]


def test_a_workflow_does_not_choose() -> None:
    flow = {"name": "flow", "as_agent": "inner"}
    spec = tree({"agent": "flow"}, flow=flow)
    spec["components"] |= {"workflows": {"inner": ["a"]}}  # type: ignore[operator]
    codes = [(each.code, each.path_text) for each in load_tree(spec, rules=check).diagnostics]
    assert codes == [("E_ROUTER_SELECTOR", "workflow.steps[0].selector.agent")]
    with pytest.raises(Invalid, match=r"chooses by the agent flow, which is a workflow"):
        compile_program(Spec.model_validate(spec), "workflow")


def test_either_a_function_or_an_agent_chooses() -> None:
    assert ("E_ROUTER_SELECTOR", "workflow.steps[0].selector") in found({"agent": "a", "function": "f"})


def test_transfer_needs_an_agent() -> None:
    tools = {"t": {"description": "d", "implementation": "app.t", "transfer": True}}
    diagnostics = load_tree({"agent": {"name": "root"}, "tools": tools}, rules=check).diagnostics
    assert [(each.code, each.path_text) for each in diagnostics] == [("E_SCHEMA", "tools.t.transfer")]


def test_what_the_caller_would_be_shown_has_no_effect_at_a_transfer() -> None:
    tools = {"t": {"description": "d", "agent": "a", "transfer": True, "output": "untrusted", "max_result_chars": 500}}
    diagnostics = load_tree({**tree({"agent": "a"}), "tools": tools}, rules=check).diagnostics
    assert {each.path_text for each in diagnostics if each.code == "W_FIELD_NO_EFFECT"} == {
        "tools.t.output",
        "tools.t.max_result_chars",
    }
