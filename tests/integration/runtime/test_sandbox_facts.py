"""The sandbox of each call: in the steps of a run, in its trace and on its page."""

from __future__ import annotations

from agent_runs import MakeRuns
from model_server import Call, ModelRequest, Reply
from operation_context import operation_context

from kneo.api.run_steps import list_run_steps
from kneo.api.runs import get_run_trace
from kneo.cli.watch import details
from kneo.records.run import RunStatus


def looks(request: ModelRequest) -> Reply:
    return Reply("Done.") if request.turns else Reply(calls=[Call("look", {"id": "x"})])


def test_the_sandbox_of_a_call_is_in_steps_and_trace(make: MakeRuns) -> None:
    agents = make(looks)
    agents.level = "process"
    tree = agents.agent_tree(teller={"tools": ["look"]}, tools={"look": agents.tool("look", {}, timeout_seconds=240)})
    run = agents.drive(agents.begin(tree))
    assert run.status is RunStatus.SUCCEEDED, run.error
    context = operation_context(agents.store)
    [step] = list_run_steps(context, run.id).steps
    [call] = step.tool_calls
    assert call.sandbox is not None
    assert call.sandbox["level"] == "process"
    assert str(call.sandbox["profile"]).startswith("sha256:")
    assert call.sandbox["denied"] == []
    told = [event for event in get_run_trace(context, run.id).events if event.metadata.get("sandbox")]
    assert {event.type for event in told} == {"tool_call_started", "tool_call_completed"}
    assert "process sandbox" in details(vars(told[0]))


def test_denied_hosts_are_named() -> None:
    event = {
        "type": "step_completed",
        "metadata": {"sandbox": {"level": "kernel", "denied": ["a.example:443", "b.example:25"]}},
    }
    assert details(event) == "kernel sandbox, denied a.example:443, b.example:25"
