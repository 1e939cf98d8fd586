"""Runs whose agent calls an agent of another service over Agent2Agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_runs import MODEL, AgentRuns
from foreign_agent import ForeignAgent, foreign_agent_in_thread
from installation_key import find_key
from kneo_process import eventually
from model_server import Call, Reply, model_server

from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.recover import cancel_run
from kneo.store.migrate import open_store


@pytest.fixture
def agent() -> Iterator[ForeignAgent]:
    with foreign_agent_in_thread() as agent:
        yield agent


Make = Callable[..., AgentRuns]


@pytest.fixture
def make(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: ForeignAgent) -> Iterator[Make]:
    """Make a store and a model that calls the remote agent once with a text."""
    store = open_store(database_url, SystemClock(), find_key)
    monkeypatch.setenv("KNEO_SERV_TOOLS_INSIDE", agent.url.removeprefix("http://"))
    with model_server([]) as server:

        def made(text: str) -> AgentRuns:
            server.script = [Reply(calls=[Call("painter", {"input": text})]), Reply("Painted.")]
            return AgentRuns(store, tmp_path / "code", server, monkeypatch)

        yield made
    store.close()


def spec(agent: ForeignAgent, **tool: Any) -> dict[str, Any]:
    permissions = {"allow_network": True, "allowed_domains": ["127.0.0.1"]}
    tools = {"include": ["painter"], "permissions": permissions}
    return {
        "agent": {"name": "root", "model": MODEL, "strategy": "react", "tools": tools},
        "tools": {"painter": {"description": "Paints.", "a2a": {"url": agent.url}, **tool}},
    }


def sent_back(runs: AgentRuns) -> str:
    """What the model was told of the call."""
    return str(runs.server.requests[-1].body)


def drive_until_kept(runs: AgentRuns, run: Run, act: Callable[[asyncio.Task[object]], object]) -> None:
    """Drive a run in a process of its own until its journal has the remote task, then act, and wait until the process ends."""

    def is_kept() -> bool:
        return any("state" in entry.body for entry in runs.journal(run))

    async def main() -> None:
        driving = asyncio.create_task(runs.driver().drive_alone(run.id))
        await asyncio.to_thread(eventually, is_kept)
        act(driving)
        await asyncio.wait([driving])

    asyncio.run(main())


def test_the_model_is_told_what_the_remote_agent_made(make: Make, agent: ForeignAgent) -> None:
    runs = make("a fence")
    run = runs.drive(runs.begin(spec(agent)))
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Painted.")
    assert "done: a fence" in sent_back(runs)
    assert agent.message_ids[0].startswith(f"{run.id}:")


def test_a_gate_asks_before_anything_is_sent(make: Make, agent: ForeignAgent) -> None:
    runs = make("a fence")
    tree = spec(agent, review={"before": {"prompt": "Paint it?"}})
    run = runs.drive(runs.begin(tree))
    (asked,) = runs.open(run)
    assert agent.received == []
    runs.decide(asked, "edited", content='{"input": "a wall"}')
    assert runs.drive(run).status is RunStatus.SUCCEEDED
    assert agent.received == ["a wall"]


def test_a_question_of_the_remote_agent_is_a_task(make: Make, agent: ForeignAgent) -> None:
    runs = make("ask")
    run = runs.drive(runs.begin(spec(agent)))
    (asked,) = runs.open(run)
    assert "Which colour?" in str(asked)
    runs.decide(asked, "provided", content='{"answer": "red"}')
    run = runs.drive(run)
    assert (run.status, agent.received) == (RunStatus.SUCCEEDED, ["ask", "red"])
    assert "done: red" in sent_back(runs)


def test_another_process_continues_a_call_that_was_interrupted(make: Make, agent: ForeignAgent) -> None:
    runs = make("work")
    run = runs.begin(spec(agent))
    drive_until_kept(runs, run, lambda driving: driving.cancel())
    assert agent.cancelled == []
    agent.end()
    run = runs.drive(run)
    assert (run.status, runs.all_tasks(run)) == (RunStatus.SUCCEEDED, [])
    assert agent.received == ["work"]
    assert "done: work" in sent_back(runs)


def test_the_remote_task_of_a_cancelled_run_is_cancelled(make: Make, agent: ForeignAgent) -> None:
    runs = make("work")
    run = runs.begin(spec(agent))
    drive_until_kept(runs, run, lambda _: cancel_run(runs.store, run.id, actor="ann"))
    assert runs.look(run).status is RunStatus.CANCELLED
    assert len(agent.cancelled) == 1
