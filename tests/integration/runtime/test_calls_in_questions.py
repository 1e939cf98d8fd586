"""The earlier calls that a question about a call shows, as the environment has it."""

from __future__ import annotations

import pytest
from agent_runs import AgentRuns, MakeRuns
from gates.asking import ENVIRONMENT, declare
from model_server import Call, ModelRequest, Reply

from kneo.api.decisions import with_calls
from kneo.records.run import Run


def looks_then_pays(request: ModelRequest) -> Reply:
    calls = ([Call("look", {"id": "a"})], [Call("pay", {"amount": 5})])
    return Reply(calls=calls[request.text.count('"tool_call_id"')])


def shown(agents: AgentRuns, run: Run, *, is_candidate: bool = True) -> object:
    [task] = agents.open(run)
    with agents.store.read() as tx:
        found = with_calls(tx, task, run, may_read_content=False, is_candidate=is_candidate)
    calls = found.metadata["facts"].get("calls")  # type: ignore[attr-defined]
    return [call["title"] for call in calls] if calls is not None else None


@pytest.mark.parametrize(("context", "calls"), [("calls", ["look(id: a)"]), ("none", None)])
def test_an_environment_may_keep_earlier_calls_from_candidates(
    context: str, calls: list[str] | None, make: MakeRuns
) -> None:
    agents = make(looks_then_pays)
    declare(agents.store, inlineSpecs=True, questions={"context": context})
    run = agents.drive(agents.begin(environment=ENVIRONMENT))
    assert shown(agents, run) == calls
    assert shown(agents, run, is_candidate=False) is None
