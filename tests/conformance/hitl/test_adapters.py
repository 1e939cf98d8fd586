"""Agents of pydantic-ai in flows and workflows, against a model server on loopback."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from kneo_process import eventually
from model_server import Call, ModelRequest, ModelServer, Reply, model_server
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from kneo.errors import Usage
from kneo.sdk import HandoffWorkflow, Message, RunConfig, SequentialWorkflow, WorkflowBuilder, WorkflowFailed
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import Executions, Flow, ask_question, flow
from kneo.sdk.durable.adapters.pydantic_ai import (
    DurableAgent,
    KitaruAgent,
    answer_deferred,
    hitl_tool,
    wait_for_input,
)

_turns = itertools.count()


def answer(request: ModelRequest, mark: str | None = None) -> Reply:
    """Look up, ask, publish, end; the question is worded differently each time that the model is called."""
    done = sum(message["role"] == "tool" for message in request.body["messages"])
    steps = [
        Reply(calls=[Call("lookup_wiki", {"topic": "durability"})]),
        Reply(
            calls=[
                Call(
                    "ask",
                    {
                        "question": f"What suffix should I add before publishing? {next(_turns) if mark is None else mark}"
                    },
                )
            ]
        ),
        Reply(
            calls=[Call("publish_summary", {"text": f"Durable execution. {request.body['messages'][-1]['content']}"})]
        ),
    ]
    return steps[done] if done < len(steps) else Reply(f"Published: {request.body['messages'][-1]['content']}")


@pytest.fixture
def database(migrated_file: Callable[[str], Path]) -> Iterator[SqliteDb]:
    found = SqliteDb(migrated_file("runs.db"))
    yield found
    found.close()


def model_of(server: ModelServer) -> OpenAIChatModel:
    """Return a model that leaves no connection open behind a turn."""
    client = httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0))
    return OpenAIChatModel("m", provider=OpenAIProvider(base_url=server.openai_url, api_key="k", http_client=client))


class Harness:
    """The tutorial's agent, and what its tools did."""

    def __init__(self, server: ModelServer, database: SqliteDb, **options: object) -> None:
        self.server, self.did = server, list[str]()
        agent: Agent[None, str] = Agent(model_of(server), name="default")

        @agent.tool_plain
        def lookup_wiki(topic: str) -> str:
            self.did.append(f"lookup {topic}")
            return "Durable execution persists every checkpoint output."

        @agent.tool_plain
        def ask(question: str) -> str:
            answered = wait_for_input(question=question, name="suffix", timeout=0, metadata={"step": "publish"})
            return str(answered)

        @agent.tool_plain
        def publish_summary(text: str) -> str:
            self.did.append(f"publish {text}")
            return "4f12a87bc394"

        self.agent = DurableAgent(agent, **options)  # type: ignore[arg-type]

        async def publish(topic: str) -> str:
            return (await self.agent.run(f"Publish about {topic}.")).output

        self.flow: Flow = flow(database=database)(publish)
        self.executions = Executions([self.flow])


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(answer) as running:
        yield running


def test_a_question_in_the_middle_of_a_turn_is_asked_once_and_nothing_before_it_is_repeated(
    server: ModelServer, database: SqliteDb
) -> None:
    harness = Harness(server, database)
    waiting = harness.flow.start("durability")
    assert [each.name for each in waiting.pending_waits] == ["suffix"]
    assert (len(server.requests), harness.did) == (2, ["lookup durability"])
    done = harness.executions.input(waiting.id, value="Verified by ops on call")
    assert done.result == "Published: 4f12a87bc394"
    assert len(server.requests) == 4
    assert harness.did == ["lookup durability", "publish Durable execution. Verified by ops on call"]


def test_a_replay_does_not_ask_again(database: SqliteDb) -> None:
    with model_server(lambda request: answer(request, "")) as server:
        harness = Harness(server, database)
        waiting = harness.flow.start("durability")
        harness.executions.input(waiting.id, value="ok")
        replayed = harness.flow.replay(waiting.id, from_="default")
        assert (replayed.status, [each.reused for each in replayed.waits]) == ("completed", [True])


def test_with_turn_the_results_of_tools_are_recorded_when_the_turn_ends(
    server: ModelServer, database: SqliteDb
) -> None:
    harness = Harness(server, database, checkpoint_strategy="turn")
    waiting = harness.flow.start("durability")
    done = harness.executions.input(waiting.id, value="ok")
    assert (done.status, len(server.requests)) == ("completed", 4)
    assert harness.did == ["lookup durability", "lookup durability", "publish Durable execution. ok"]
    names = {each.name for each in harness.executions.get(waiting.id).checkpoints}
    assert names >= {"lookup_wiki:1", "publish_summary:1", "default reply:1"}


def test_a_tool_without_checkpoints_is_called_again(server: ModelServer, database: SqliteDb) -> None:
    harness = Harness(server, database, tool_checkpoint_config_by_name={"lookup_wiki": False, "ask": False})
    waiting = harness.flow.start("durability")
    assert harness.executions.input(waiting.id, value="ok").status == "completed"
    assert harness.did.count("lookup durability") == 2
    assert len(server.requests) == 4


def test_a_retry_that_a_tool_asked_for_is_recorded(database: SqliteDb) -> None:
    def two_steps(request: ModelRequest) -> Reply:
        tools = [message for message in request.body["messages"] if message["role"] == "tool"]
        return Reply(calls=[Call("look", {})]) if len(tools) < 2 else Reply("done")

    calls: list[int] = []
    with model_server(two_steps) as server:
        agent: Agent[None, str] = Agent(model_of(server), retries=3)

        @agent.tool_plain
        def look() -> str:
            calls.append(1)
            if len(calls) == 1:
                msg = "Look elsewhere."
                raise ModelRetry(msg)
            return "found"

        async def work() -> list[object]:
            first = (await KitaruAgent(agent).run("Look.")).output
            return [first, wait_for_input(question="Fine?", timeout=0)]

        stage = flow(database=database)(work)
        waiting = stage.start()
        assert Executions([stage]).input(waiting.id, value=True).result == ["done", True]
        assert (len(calls), len(server.requests)) == (2, 3)


def test_deferred_calls_become_human_tasks(database: SqliteDb) -> None:
    def approve(request: ModelRequest) -> Reply:
        last = request.body["messages"][-1]
        return Reply(last["content"]) if last["role"] == "tool" else Reply(calls=[Call("delete", {"name": "a"})])

    deleted: list[str] = []
    with model_server(approve) as server:
        agent = Agent(model_of(server), output_type=[str, DeferredToolRequests])

        @agent.tool_plain(requires_approval=True)
        def delete(name: str) -> str:
            deleted.append(name)
            return f"deleted {name}"

        durable = DurableAgent(agent)

        async def work() -> str:
            result = await durable.run("Delete a.")
            while isinstance(result.output, DeferredToolRequests):
                answers = answer_deferred(result.output)
                result = await durable.run(message_history=result.all_messages(), deferred_tool_results=answers)
            return str(result.output)

        stage = flow(database=database)(work)
        handle = stage.run()
        open_waits = eventually(lambda: Executions([stage]).get(handle.execution_id).pending_waits)
        assert [each.question for each in open_waits] == ["Approve delete?"]
        assert deleted == []
        Executions([stage]).input(handle.execution_id, value=False)
        assert "rejected" in str(handle.wait(240))
        assert deleted == []


def test_outside_a_flow_it_is_the_agent_that_it_wraps(server: ModelServer, database: SqliteDb) -> None:
    harness = Harness(server, database)
    with pytest.raises(Usage, match="Only a step"):
        asyncio.run(harness.agent.run("Publish."))
    with pytest.raises(Usage, match="calls or turn"):
        DurableAgent(harness.agent.wrapped, checkpoint_strategy="never")  # type: ignore[arg-type]
    with pytest.raises(Usage, match="True or False"):
        DurableAgent(harness.agent.wrapped, tool_checkpoint_config_by_name={"ask": None})  # type: ignore[dict-item]


def test_a_tool_that_is_a_question(database: SqliteDb) -> None:
    @hitl_tool(schema=int, timeout=0)
    def estimate(task: str) -> int:
        """How many days?"""
        raise AssertionError(task)

    def ask(request: ModelRequest) -> Reply:
        last = request.body["messages"][-1]
        return Reply(last["content"]) if last["role"] == "tool" else Reply(calls=[Call("estimate", {"task": "x"})])

    with model_server(ask) as server:
        agent: Agent[None, str] = Agent(model_of(server), tools=[estimate])

        async def work() -> str:
            return (await DurableAgent(agent).run("Go.")).output

        stage = flow(database=database)(work)
        waiting = stage.start()
        assert [each.question for each in waiting.pending_waits] == ["How many days?"]
        assert Executions([stage]).input(waiting.id, value=3).result == "3"


def test_ask_question_keeps_its_name(server: ModelServer, database: SqliteDb) -> None:
    agent: Agent[None, str] = Agent(model_of(server), tools=[ask_question])
    assert DurableAgent(agent).name == agent.name


def test_several_questions_of_a_turn_are_each_asked_once(database: SqliteDb) -> None:
    def answer_all(request: ModelRequest) -> Reply:
        done = sum(message["role"] == "tool" for message in request.body["messages"])
        return Reply(calls=[Call("ask", {"question": "Same?"})]) if done < 3 else Reply("done")

    with model_server(answer_all) as server:
        agent: Agent[None, str] = Agent(model_of(server), name="default")
        effects: list[str] = []

        @agent.tool_plain
        def ask(question: str) -> str:
            answered = str(wait_for_input(question=question, timeout=0))
            effects.append(answered)
            return answered

        async def work() -> str:
            return (await DurableAgent(agent).run("Go.")).output

        stage = flow(database=database)(work)
        executions = Executions([stage])
        waiting = stage.start()
        for number in range(3):
            assert [each.name for each in waiting.pending_waits] == [f"wait_condition:{number + 1}"]
            waiting = executions.input(waiting.id, value=f"answer {number}")
        assert waiting.result == "done"
        assert effects == ["answer 0", "answer 1", "answer 2"]
        assert len(server.requests) == 4


# ---- participants of workflows -----------------------------------------------------------------------------------


class Verdict(BaseModel):
    good: bool


def critic(server: ModelServer, **options: object) -> Agent:
    """Return an agent with a system prompt, instructions and a name."""
    named = {"name": "critic", "system_prompt": "You are strict.", "instructions": "Answer in one word."}
    return Agent(model_of(server), **named | options)


def prompts(request: ModelRequest) -> list[tuple[str, object]]:
    return [(message["role"], message["content"]) for message in request.body["messages"]]


def test_an_agent_takes_part_in_a_workflow_and_reads_its_conversation(database: SqliteDb) -> None:
    def writer(messages: Sequence[Message], _config: RunConfig) -> str:
        return f"a draft about {messages[-1].content}"

    with model_server(lambda _request: Reply("Good.")) as server:
        workflow = SequentialWorkflow(
            [writer, critic(server), WorkflowBuilder.step("end", lambda messages, config: messages[-1].content + "!")],
            database=database,
        )
        result = workflow.run_sync("cats")
    assert [(each.name, each.content) for each in result.messages[1:]] == [
        ("writer", "a draft about cats"),
        ("critic", "Good."),
        ("end", "Good.!"),
    ]
    [request] = server.requests
    assert ("system", "You are strict.") in prompts(request)
    assert ("system", "Answer in one word.") in prompts(request)
    assert prompts(request)[-2:] == [("user", "cats"), ("user", "a draft about cats")]


def test_an_agent_answers_each_turn_of_a_conversation(database: SqliteDb) -> None:
    replies = iter(["One.", "Two."])
    with model_server(lambda _request: Reply(next(replies))) as server:
        workflow = HandoffWorkflow(
            [critic(server)], lambda _messages, _config, turn: "critic" if turn < 2 else None, database=database
        )
        assert [each.content for each in workflow.run_sync("cats").messages] == ["cats", "One.", "Two."]
    assert prompts(server.requests[1])[-2:] == [("user", "cats"), ("user", "One.")]


def test_the_configuration_of_a_run_applies_to_an_agent(database: SqliteDb) -> None:
    with model_server(lambda _request: Reply("Good.")) as server:
        workflow = SequentialWorkflow([critic(server)], database=database)
        workflow.run_sync("cats", RunConfig(system_prompt="You are kind.", temperature=0.25))
    [request] = server.requests
    assert prompts(request) == [("system", "You are kind."), ("user", "cats")]
    assert request.body["temperature"] == 0.25


def test_a_run_limits_the_requests_of_an_agent(database: SqliteDb) -> None:
    with model_server(lambda _request: Reply(calls=[Call("look", {})])) as server:
        agent = critic(server)
        agent.tool_plain(lambda: "nothing", name="look")
        workflow = SequentialWorkflow([agent], database=database)
        with pytest.raises(WorkflowFailed, match="request_limit"):
            workflow.run_sync("cats", RunConfig(max_iterations=3))
    assert len(server.requests) == 3


def test_the_output_of_an_agent_that_is_no_text_is_passed_on_as_json(database: SqliteDb) -> None:
    with model_server(lambda _request: Reply(calls=[Call("final_result", {"good": True})])) as server:
        workflow = SequentialWorkflow([critic(server, output_type=Verdict)], database=database)
        assert workflow.run_sync("cats").output_text == '{"good": true}'


def test_a_call_that_an_agent_defers_ends_the_step_with_what_to_do(database: SqliteDb) -> None:
    with model_server(lambda _request: Reply(calls=[Call("pay", {})])) as server:
        agent = critic(server, output_type=[str, DeferredToolRequests])
        agent.tool_plain(lambda: "paid", name="pay", requires_approval=True)
        with pytest.raises(WorkflowFailed, match="deferred a call of a tool"):
            SequentialWorkflow([agent], database=database).run_sync("cats")


def test_an_agent_without_a_name_takes_no_part(server: ModelServer) -> None:
    with pytest.raises(Usage, match="has no name"):
        SequentialWorkflow([critic(server, name=None)])
    with pytest.raises(Usage, match="no agent of the spec language"):
        WorkflowBuilder.agent_step("critic", critic(server))
