"""Whole runs of agents: interrupted calls, questions of MCP servers, structured output and limits of a strategy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_runs import MODEL, AgentRuns
from installation_key import find_key
from model_server import Call, ModelServer, Reply, model_server

from kneo.clock import SystemClock
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.store import agent_journal
from kneo.store.engine import Store
from kneo.store.migrate import open_store

PAY = [Reply(calls=[Call("pay", {"amount": 5}, id="c1")]), Reply("Done.")]
MCP_SERVER = Path(__file__).parents[2] / "support" / "mcp_server.py"

Make = Callable[[list[Reply]], AgentRuns]


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server([]) as server:
        yield server


@pytest.fixture
def make(store: Store, tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("KNEO_SERV_MCP_COMMANDS", sys.executable)

    def made(script: list[Reply]) -> AgentRuns:
        server.script = script
        return AgentRuns(store, tmp_path / "code", server, monkeypatch)

    return made


# ---- interrupted calls ----------------------------------------------------------------------------------------------


def interrupted(agents: AgentRuns, **pay: object) -> Run:
    """Return a paused run whose approved call began, and whose process ended during it."""
    run = agents.drive(agents.begin(agents.agent_tree(pay=pay)))
    [task] = agents.open(run)
    [reply] = agents.journal(run)
    begun = ConversationEntry(
        conversation=reply.conversation,
        name="tool:1.c1",
        number=1,
        kind=EntryKind.TOOL,
        status=EntryStatus.BEGUN,
        body={"arguments": {"amount": 5}},
        facts={"tool": "pay", "begun": 1},
        started_at="2026-01-31T12:00:00.000000+00:00",
    )
    with agents.store.write() as tx:
        agent_journal.append(tx, run.id, [begun])
    agents.decide(task, "approved", expect_digest=task.subject_digest)
    return agents.drive(run)


def the_question(agents: AgentRuns, run: Run) -> HumanTask:
    [task] = agents.open(run)
    assert task.options == ("repeat", "done", "stop")
    for shown in ("under way", "2026-01-31T12:00:00", f"{run.id}:work"):
        assert shown in task.prompt
    return task


def test_an_interrupted_effect_is_repeated_when_a_person_says_so(make: Make) -> None:
    agents = make(PAY)
    run = interrupted(agents)
    assert agents.notes() == []
    agents.decide(the_question(agents, run), "selected", selected_option="repeat")
    run = agents.drive(run)
    assert (run.status, agents.notes()) == (RunStatus.SUCCEEDED, ["pay 5"])


def test_an_interrupted_effect_that_happened_is_not_repeated(make: Make) -> None:
    agents = make(PAY)
    run = interrupted(agents)
    agents.decide(the_question(agents, run), "selected", selected_option="done")
    run = agents.drive(run)
    assert (run.status, agents.notes()) == (RunStatus.SUCCEEDED, [])
    assert "A person confirmed that this call took effect" in agents.server.requests[-1].text


def test_the_result_of_an_interrupted_effect_can_be_told(make: Make) -> None:
    agents = make(PAY)
    run = interrupted(agents)
    agents.decide(the_question(agents, run), "selected", selected_option="done", content="receipt 77")
    run = agents.drive(run)
    assert (run.status, agents.notes()) == (RunStatus.SUCCEEDED, [])
    assert "receipt 77" in agents.server.requests[-1].text


def test_stop_at_an_interrupted_effect_cancels_the_run(make: Make) -> None:
    agents = make(PAY)
    run = interrupted(agents)
    agents.decide(the_question(agents, run), "selected", selected_option="stop")
    run = agents.drive(run)
    assert (run.status, agents.notes()) == (RunStatus.CANCELLED, [])


def test_an_interrupted_call_can_fail_the_step(make: Make) -> None:
    run = interrupted(make(PAY), on_interrupted="fail")
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "tool_interrupted"


# ---- questions of MCP servers ---------------------------------------------------------------------------------------


def ordering(agents: AgentRuns, *options: str) -> Run:
    tool = {
        "description": "Order.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        "mcp": {"server": "shop", "name": "order"},
        "effects": True,
    }
    shop = {"transport": "stdio", "command": sys.executable, "args": [str(MCP_SERVER), *options]}
    tree = agents.agent_tree(teller={"tools": ["order"]}, tools={"order": tool}, mcp_servers={"shop": shop})
    return agents.drive(agents.begin(tree))


def test_a_server_asks_a_person_and_another_process_of_it_gets_the_answer(make: Make) -> None:
    agents = make([Reply(calls=[Call("order", {"name": "chair"})]), Reply("Ordered.")])
    run = ordering(agents, "--key", "k" * 32)
    for prompt, values in (("Which colour?", {"colour": "red"}), ("Which size?", {"size": 3})):
        [task] = agents.open(run)
        assert prompt in task.prompt
        agents.decide(task, "provided", values=values)
        run = agents.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Ordered.")
    assert "red" in agents.server.requests[-1].text
    assert len(agents.server.requests) == 2


def test_a_server_that_forgets_its_questions_is_asked_about_twice_more(make: Make) -> None:
    agents = make([Reply(calls=[Call("order", {"name": "chair"})]), Reply("Not ordered.")])
    run = ordering(agents)  # each process of the server has a key of its own
    prompts = []
    while run.status is RunStatus.PAUSED:
        [task] = agents.open(run)
        prompts.append(task.prompt)
        agents.decide(task, "provided", values={"colour": "red"} if "colour" in task.prompt else {"size": 3})
        run = agents.drive(run)
    assert ["colour" in prompt for prompt in prompts] == [True, False] * 3
    assert run.output_text == "Not ordered."
    assert "too_many_questions" in agents.server.requests[-1].text


# ---- answers --------------------------------------------------------------------------------------------------------


def test_conditions_compare_the_values_of_a_structured_answer(make: Make) -> None:
    agents = make([Reply(json.dumps({"team": "sales", "urgent": True}))])
    schema = {"type": "object", "properties": {"team": {"enum": ["sales", "support"]}, "urgent": {"type": "boolean"}}}
    urgent = {"type": "metadata_equals", "key": "urgent", "value": True}
    tree = agents.agent_tree(teller={"tools": [], "strategy": "simple", "output_schema": schema})
    tree["workflow"]["steps"] += [  # type: ignore[index]
        {
            "id": "urgent",
            "kind": "condition",
            "when": urgent,
            "steps": [{"id": "call", "kind": "human", "ref": "ops"}],
        }
    ]
    run = agents.drive(agents.begin(tree))
    assert run.status is RunStatus.PAUSED
    [task] = agents.open(run)
    assert task.subject == '{"team":"sales","urgent":true}'


def test_too_many_iterations_are_an_error_of_that_name(make: Make) -> None:
    agents = make([Reply(calls=[Call("look", {"id": "x"})])] * 3)
    run = agents.drive(agents.begin(agents.agent_tree(teller={"strategy": {"type": "react", "max_iterations": 2}})))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "max_iterations"
    assert agents.notes() == ["look x", "look x"]


def test_a_retry_continues_the_conversation(make: Make) -> None:
    replies = [Reply(calls=[Call("look", {"id": "x"})]), [Reply("", finish="stop"), Reply("Done.")]]
    agents = make(replies)  # type: ignore[arg-type]
    run = agents.drive(agents.begin(agents.agent_tree(step={"on_error": "retry", "max_retries": 1})))
    # The empty reply is in the conversation: a retry asks nothing again, and ends as before.
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "model_empty_reply"
    assert agents.notes() == ["look x"]
    assert MODEL["name"] == agents.server.requests[0].model
