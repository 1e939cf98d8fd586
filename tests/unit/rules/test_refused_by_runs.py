"""What a run would refuse before it starts, lint says with its place."""

from __future__ import annotations

import pytest

from kneo.errors import Invalid
from kneo.runtime.program.compiler import compile_program
from kneo.spec.lint import check
from kneo.spec.reading.load import load_tree

MODEL = {"provider": "dummy", "name": "echo"}
ECHO = {"id": "one", "kind": "agent", "ref": "root"}
FLOW = {"type": "sequential", "steps": [ECHO]}

TIMED: dict[str, dict] = {
    "steps": {"kind": "steps", "steps": [ECHO]},
    "parallel": {"kind": "parallel", "steps": [ECHO]},
    "condition": {"kind": "condition", "when": {"type": "always"}, "steps": [ECHO]},
    "loop": {"kind": "loop", "steps": [ECHO], "max_iterations": 2},
    "router": {"kind": "router", "choices": {"a": {"steps": [ECHO]}}, "selector": {"default": "a"}},
    "workflow": {"kind": "workflow", "ref": "flow"},
    "agent that is a workflow": {"kind": "agent", "ref": "flow-agent"},
}


def loaded_with(step: dict) -> object:
    components = {"workflows": {"flow": FLOW}, "agents": {"flow-agent": {"name": "flow-agent", "as_agent": "flow"}}}
    tree = {"agent": {"name": "root", "model": MODEL}, "workflow": [{"id": "s", **step}], "components": components}
    return load_tree(tree, rules=check)


@pytest.mark.parametrize("name", TIMED)
def test_a_time_limit_that_a_run_refuses_is_an_error_of_lint(name: str) -> None:
    loaded = loaded_with({**TIMED[name], "timeout_seconds": 60})
    with pytest.raises(Invalid, match="timeout_seconds"):
        compile_program(loaded.spec, "workflow")
    errors = [(found.code, found.path_text) for found in loaded.diagnostics if found.is_error]
    assert errors == [("E_STEP_TIMEOUT", "workflow.steps[0].timeout_seconds")]


@pytest.mark.parametrize("name", TIMED)
def test_without_a_time_limit_or_where_it_is_disabled_there_is_no_error(name: str) -> None:
    assert loaded_with(TIMED[name]).valid
    assert loaded_with({**TIMED[name], "timeout_seconds": 60, "enabled": False}).valid


@pytest.mark.parametrize(("limit", "participants"), [(1, [ECHO, {**ECHO, "id": "two"}]), (0, [ECHO])])
def test_fewer_turns_than_participants_at_once_are_refused(limit: int, participants: list[dict]) -> None:
    flow = {"type": "concurrent", "participants": participants, "max_iterations": limit}
    loaded = load_tree({"agent": {"name": "root", "model": MODEL}, "workflow": flow}, rules=check)
    assert loaded.spec is not None
    errors = [(found.code, found.path_text) for found in loaded.diagnostics if found.is_error]
    assert errors == [("E_CONCURRENT_TURNS", "workflow.max_iterations")]
    with pytest.raises(Invalid, match="max_iterations"):
        compile_program(loaded.spec, "workflow")


def test_a_disabled_participant_takes_no_turn() -> None:
    participants = [ECHO, {**ECHO, "id": "two", "enabled": False}]
    flow = {"type": "concurrent", "participants": participants, "max_iterations": 1}
    loaded = load_tree({"agent": {"name": "root", "model": MODEL}, "workflow": flow}, rules=check)
    assert loaded.valid
    assert loaded.spec is not None
    compile_program(loaded.spec, "workflow")


def test_a_memory_without_the_system_prompt_is_refused() -> None:
    memory = {"policy": "sliding_window", "preserve_system_messages": False}
    loaded = load_tree({"agent": {"name": "root", "model": MODEL, "memory": memory}}, rules=check)
    errors = [(found.code, found.path_text) for found in loaded.diagnostics if found.is_error]
    assert errors == [("E_FIELD_UNSUPPORTED", "agent.memory.preserve_system_messages")]
