"""The code of an agent's step: it is loaded before the model or a person is asked, or the step fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from agent_runs import MODEL, AgentRuns, MakeRuns
from gates.asking import ENVIRONMENT, declare
from model_server import Call, ModelRequest, Reply

from kneo.digest import digest_of
from kneo.records.run import Run, RunStatus
from kneo.runtime.steps.code import CodeLoader

OTHER = "ELSEWHERE"


def pays(request: ModelRequest) -> Reply:
    return Reply("Done.") if request.turns else Reply(calls=[Call("pay", {"amount": 5})])


def helper(**changes: object) -> dict[str, object]:
    return {"name": "helper", "model": MODEL, "strategy": "react", "tools": ["far"], **changes}


def guarded(stage: str, kind: str, ref: str) -> dict[str, object]:
    return {"guardrails": {stage: [{"id": "check", "type": kind, "ref": ref}]}}


FAR = {"description": "Far.", "implementation": f"{OTHER}.far", "parameters": {"type": "object"}}
FUNCTIONS = {"check": {"implementation": f"{OTHER}.check"}}
BEHIND = {"description": "Ask it.", "agent": "helper"}

SPECS: Mapping[str, Mapping[str, object]] = {
    "a tool": {"pay": {"implementation": f"{OTHER}.pay"}},
    "another tool": {"tools": {"far": FAR}, "teller": {"tools": ["pay", "far"]}},
    "a verification": {"pay": {"on_interrupted": {"verify": f"{OTHER}.was_paid"}}},
    "a tool of an agent behind a tool": {
        "tools": {"far": FAR, "ask": BEHIND},
        "teller": {"tools": ["pay", "ask"]},
        "agents": {"helper": helper()},
    },
    "a guardrail": {"teller": guarded("output", "function", "check"), "functions": FUNCTIONS},
    "a guardrail of calls": {"teller": guarded("tool", "function", "check"), "functions": FUNCTIONS},
    "a tool of an agent that checks": {
        "tools": {"far": FAR},
        "teller": guarded("output", "agent", "helper"),
        "agents": {"helper": helper()},
    },
    "a guardrail of an agent behind a tool": {
        "tools": {"ask": BEHIND},
        "teller": {"tools": ["pay", "ask"]},
        "agents": {"helper": helper(tools=[], **guarded("input", "function", "check"))},
        "functions": FUNCTIONS,
    },
    "a memory": {
        "teller": {"memory": {"policy": "retrieval", "retriever": {"ref": "check"}}},
        "functions": FUNCTIONS,
    },
    "a guardrail of a dummy": {
        "teller": {
            "model": {"provider": "dummy", "name": "dummy"},
            "tools": [],
            "strategy": "simple",
            "guardrails": {
                "input": [{"id": "words", "type": "keyword", "action": "human_review", "config": {"keywords": ["go"]}}],
                "output": [{"id": "check", "type": "function", "ref": "check"}],
            },
        },
        "functions": FUNCTIONS,
    },
}
"""Specs that name code of another worker."""


def spec_of(runs: AgentRuns, **changes: object) -> dict[str, object]:
    functions = changes.pop("functions", {})
    tree = runs.agent_tree(**changes)
    components = tree["components"]
    assert isinstance(components, dict)
    components["functions"] = functions
    return json.loads(json.dumps(tree).replace(OTHER, other_module(runs)))  # type: ignore[no-any-return]


def other_module(agents: AgentRuns) -> str:
    """Return a name of its own in each test, because this process keeps what it imported."""
    return f"{agents.module}_elsewhere"


def assert_failed(agents: AgentRuns, run: Run, code: str) -> None:
    assert (run.status, run.error and run.error.type) == (RunStatus.FAILED, code)
    assert agents.all_tasks(run) == []
    assert agents.server.requests == []
    assert agents.journal(run) == []
    assert agents.notes() == []


@pytest.mark.parametrize("what", SPECS)
@pytest.mark.parametrize("code", ["implementation_forbidden", "implementation_invalid"])
def test_a_step_whose_code_cannot_be_loaded_asks_neither_a_model_nor_a_person(
    make: MakeRuns, what: str, code: str, tmp_path: Path
) -> None:
    agents = make(pays)
    if code == "implementation_invalid":
        (tmp_path / "code" / f"{other_module(agents)}.py").write_text("")
    assert_failed(agents, agents.drive(agents.begin(spec_of(agents, **SPECS[what]))), code)


def test_a_step_whose_code_is_not_on_the_list_of_the_worker_fails(make: MakeRuns) -> None:
    agents = make(pays)
    agents.code = CodeLoader(agents.code.roots, ("bank",))
    assert_failed(agents, agents.drive(agents.begin()), "implementation_forbidden")


def test_a_step_whose_code_is_not_the_pinned_one_fails(make: MakeRuns) -> None:
    agents = make(pays)
    declare(agents.store, inlineSpecs=True, implementations={agents.module: f"sha256:{'0' * 64}"})
    assert_failed(agents, agents.drive(agents.begin(environment=ENVIRONMENT)), "implementation_not_pinned")


def test_code_behind_a_denied_tool_is_not_needed(make: MakeRuns) -> None:
    agents = make(pays)
    declare(agents.store, inlineSpecs=True, tools={"deny": ["far"]})
    tree = spec_of(agents, tools={"far": FAR}, teller={"tools": ["pay", "far"]}, pay={"review": None})
    run = agents.drive(agents.begin(tree, environment=ENVIRONMENT))
    assert (run.status, agents.notes()) == (RunStatus.SUCCEEDED, ["pay 5"])


def test_a_call_executes_the_pinned_bytes_when_the_file_changes_under_it(make: MakeRuns) -> None:
    agents = make(pays)
    tree = agents.agent_tree(teller={"tools": ["look"]}, tools={"look": agents.tool("look", {}, timeout_seconds=240)})
    source = agents.log.with_suffix(".py")
    declare(agents.store, inlineSpecs=True, implementations={agents.module: digest_of(source.read_bytes())})

    def changes(request: ModelRequest) -> Reply:
        source.write_text("def look(arguments): return 'another'\n")
        return Reply("Done.") if request.turns else Reply(calls=[Call("look", {"id": "x"})])

    agents.server.script = changes
    run = agents.drive(agents.begin(tree, environment=ENVIRONMENT))
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Done.")
    journal = [str(entry.body) for entry in agents.journal(run)]
    assert any("look" in body for body in journal)
    assert not any("another" in body for body in journal)
