"""Programs written for kneo_agent: the samples of its guide as printed, and workflows whose way Python functions choose."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from model_server import Call, Reply, model_server

from kneo.errors import Usage
from kneo.runtime.steps.functions import MAX_OUTPUT_CHARS
from kneo.sdk import (
    AgentRunContext,
    BaseAgentMiddleware,
    ConcurrentWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    HumanInterventionRequest,
    HumanInterventionRequiredError,
    HumanInTheLoopStep,
    Message,
    RunConfig,
    RunResult,
    SequentialWorkflow,
    StreamChunk,
    Workflow,
    WorkflowBuilder,
    WorkflowFailed,
)
from kneo.sdk.db import RunDatabase
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import checkpoint
from kneo.sdk.middleware import RunHandler
from kneo.tools import CallNext, TakeNext, ToolContext, TurnContext

ASK = WorkflowBuilder.human_step


@pytest.fixture
def database(migrated_file: Callable[[str], Path]) -> Iterator[SqliteDb]:
    opened = SqliteDb(migrated_file("runs.db"))
    yield opened
    opened.close()


def contents(name: str) -> object:
    """Return a participant that lists the messages it reads."""

    def read(messages: Sequence[Message], _config: RunConfig) -> str:
        return f"{name}({', '.join(message.content for message in messages)})"

    return WorkflowBuilder.step(name, read)


def waiting(workflow: Workflow, config: RunConfig | None = None) -> HumanInterventionRequiredError:
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("in", config)
    return caught.value


# ---- the samples of the guide -----------------------------------------------------------------------------------


def test_the_sample_with_a_resolver() -> None:
    from kneo.sdk.workflows import WorkflowBuilder

    review = WorkflowBuilder.human_step(
        "approval",
        "Approve this draft?",
        resolver=lambda request: "Approved by Alice",
    )
    result = SequentialWorkflow([review]).run_sync("A draft.")
    assert (result.messages[-1].role, result.output_text) == ("user", "Approved by Alice")


def test_the_sample_of_a_pause(capsys: pytest.CaptureFixture[str]) -> None:
    from kneo.sdk import HumanInterventionRequiredError

    workflow, messages, config = SequentialWorkflow([ASK("approval", "Approve?")]), "A draft.", RunConfig()

    async def program() -> None:
        try:
            await workflow.run(messages, config)
        except HumanInterventionRequiredError as exc:
            print(exc.step_name)
            print(exc.prompt)
            print(exc.request)

    asyncio.run(program())
    step, prompt, request = capsys.readouterr().out.splitlines()
    assert (step, prompt) == ("approval", "Approve?")
    assert "'step_name': 'approval'" in request


def test_the_sample_of_a_release() -> None:
    def writer(messages: Sequence[Message], config: RunConfig) -> str:
        return f"draft of {messages[-1].content}"

    async def publish_step(messages: Sequence[Message], config: RunConfig) -> str:
        return f"published: {messages[-1].content}"

    workflow = WorkflowBuilder.sequential(
        [
            writer,
            WorkflowBuilder.human_step(
                "editor_review",
                lambda messages, config: f"Approve this draft? {messages[-1].content}",
                resolver=lambda request: "Approved",
            ),
            publish_step,
        ],
        name="release-workflow",
    )
    result = workflow.run_sync("cats")
    assert result.output_text == "published: Approved"
    assert result.metadata["human_prompt"] == "Approve this draft? draft of cats"


def test_the_documented_names_are_at_the_root() -> None:
    import kneo.sdk as kneo_agent

    documented = ("HumanInTheLoopStep", "HumanInterventionRequest", "HumanInterventionRequiredError", "WorkflowBuilder")
    families = ("Workflow", "SequentialWorkflow", "ConcurrentWorkflow", "HandoffWorkflow", "GroupChatWorkflow")
    assert set(documented + families) <= set(kneo_agent.__all__)
    assert all(inspect.isclass(getattr(kneo_agent, name)) for name in documented + families)
    assert isinstance(kneo_agent.WorkflowBuilder.human_step("q", "?"), HumanInTheLoopStep)
    assert isinstance(kneo_agent.WorkflowBuilder.sequential([contents("a")]), kneo_agent.SequentialWorkflow)


# ---- prompts that are functions ---------------------------------------------------------------------------------


def prompt(messages: Sequence[Message], config: RunConfig) -> str:
    return f"Publish {messages[-1].content} for {config.extra['tenant']}?"


def families(question: object) -> dict[str, Callable[[RunDatabase], Workflow]]:
    first, last = contents("first"), contents("last")
    members = [first, question, last]
    return {
        "sequential": lambda db: SequentialWorkflow(members, database=db),
        "concurrent": lambda db: ConcurrentWorkflow(members, database=db),
        "group chat": lambda db: GroupChatWorkflow(members, database=db),
        "handoff": lambda db: WorkflowBuilder.handoff(members, name="handoff", database=db),
        "selected handoff": lambda db: HandoffWorkflow(members, turn_by_turn("first", "q", "last"), database=db),
        "graph of the spec": lambda db: WorkflowBuilder.graph(
            members, [("first", "q"), ("q", "last")], name="graph", start="first", database=db
        ),
        "graph": lambda db: WorkflowBuilder(first, database=db).add_edge("first", question).add_edge("q", last).build(),
        "nested": lambda db: SequentialWorkflow(
            [first, ConcurrentWorkflow([question], name="inner"), last], database=db
        ),
    }


def turn_by_turn(*names: str) -> Callable[[Sequence[Message], RunConfig, int], str | None]:
    return lambda _messages, _config, turn: names[turn] if turn < len(names) else None


@pytest.mark.parametrize("family", families(ASK("q", prompt)))
def test_a_prompt_may_be_a_function_in_every_family(database: SqliteDb, family: str) -> None:
    workflow = families(ASK("q", prompt))[family](database)
    config = RunConfig(extra={"tenant": "acme"})
    error = waiting(workflow, config)
    read = "in" if family == "concurrent" else "first(in)"
    assert (error.step_name, error.prompt) == ("q", f"Publish {read} for acme?")
    assert error.request["messages"][-1]["content"] == read
    result = asyncio.run(workflow.resume(error.run_id, "yes"))
    assert result.output_text == ("last(in)" if family == "concurrent" else "last(in, first(in), yes)")
    assert [message.name for message in result.messages[1:]] == ["first", "q", "last"]


@pytest.mark.parametrize("family", families(ASK("q", "?")))
def test_a_person_takes_part_in_every_family(database: SqliteDb, family: str) -> None:
    seen: list[HumanInterventionRequest] = []
    workflow = families(ASK("q", "?", resolver=lambda request: seen.append(request) or "yes"))[family](database)
    result = workflow.run_sync("in")
    assert len(seen) == 1
    assert [message.content for message in result.messages if message.name == "q"] == ["yes"]


# ---- the configuration of a run ---------------------------------------------------------------------------------


def test_a_configuration_is_kept_for_another_process(migrated_file: Callable[[str], Path]) -> None:
    path = migrated_file("runs.db")

    def tenant(_messages: Sequence[Message], config: RunConfig) -> str:
        return f"{config.extra['tenant']} {config.metadata['trace']}"

    def built() -> Workflow:
        return SequentialWorkflow([ASK("q", "?"), tenant, ASK("r", "?"), ASK("s", "?")], database=SqliteDb(path))

    first = built()
    error = waiting(first, RunConfig({"trace": 7}, extra={"tenant": "acme"}))
    assert first.database is not None
    first.database.close()
    second = built()
    with pytest.raises(HumanInterventionRequiredError) as caught:
        asyncio.run(second.resume(error.run_id, "yes"))
    assert caught.value.request["messages"][-1]["content"] == "acme 7"
    # A configuration that a resume replaces holds for later processes as well.
    with pytest.raises(HumanInterventionRequiredError):
        asyncio.run(second.resume(error.run_id, "yes", RunConfig(extra={"tenant": "other"})))
    assert second.database is not None
    second.database.close()
    third = built()
    with pytest.raises(HumanInterventionRequiredError) as caught:
        asyncio.run(third.resume(error.run_id))
    assert caught.value.request["config"]["extra"] == {"tenant": "other"}
    assert third.database is not None
    third.database.close()


def test_a_configuration_that_cannot_be_stored_is_refused(database: SqliteDb) -> None:
    workflow = SequentialWorkflow([contents("a")], database=database)
    with pytest.raises(Usage, match="cannot be stored"):
        workflow.run_sync("in", RunConfig(extra={"client": object()}))


def test_a_configuration_sets_up_agents(database: SqliteDb, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"model": {"provider": "openai", "name": "gpt-4.1-mini"}, "system_prompt": "Be long."}
    workflow = SequentialWorkflow([WorkflowBuilder.agent_step("writer", agent)], database=database)
    with model_server([Reply("Done.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        assert workflow.run_sync("in", RunConfig(temperature=0.25, system_prompt="Be brief.")).output_text == "Done."
    assert server.requests[0].body["temperature"] == 0.25
    assert "Be brief." in server.requests[0].text
    assert "Be long." not in server.requests[0].text
    spec = workflow.spec(RunConfig(max_iterations=3))
    assert spec["components"]["agents"]["writer"]["strategy"]["max_iterations"] == 3


# ---- handoffs and graphs ----------------------------------------------------------------------------------------


def test_a_selector_reads_the_conversation_and_stops(database: SqliteDb) -> None:
    turns: list[int] = []

    async def selector(messages: Sequence[Message], config: RunConfig, turn: int) -> str | None:
        turns.append(turn)
        names = config.metadata["order"]
        assert len(messages) == turn + 1
        return names[turn] if turn < len(names) else None

    workflow = HandoffWorkflow([contents("a"), contents("b")], selector, database=database)
    result = workflow.run_sync("in", RunConfig({"order": ["b", "a", "b"]}))
    assert (turns, result.metadata["workflow_steps"]) == ([0, 1, 2, 3], ["b", "a", "b"])
    assert result.output_text == "b(in, b(in), a(in, b(in)))"


def test_a_handoff_ends_at_its_limit(database: SqliteDb) -> None:
    workflow = HandoffWorkflow([contents("a")], lambda *_: "a", max_iterations=3, database=database)
    assert workflow.run_sync("in").metadata["workflow_steps"] == ["a", "a", "a"]
    assert workflow.run_sync("in", RunConfig(max_iterations=2)).metadata["workflow_steps"] == ["a", "a"]


def test_a_selector_that_names_nobody_fails_the_run(database: SqliteDb) -> None:
    workflow = HandoffWorkflow([contents("a")], lambda *_: "nobody", database=database)
    with pytest.raises(WorkflowFailed, match="'nobody' is no choice; the choices are a"):
        workflow.run_sync("in")


def test_a_handoff_continues_behind_a_question(database: SqliteDb) -> None:
    workflow = HandoffWorkflow([contents("a"), ASK("q", "?")], turn_by_turn("a", "q", "a"), database=database)
    error = waiting(workflow)
    result = asyncio.run(workflow.resume(error.run_id, "yes"))
    assert result.metadata["workflow_steps"] == ["a", "q", "a"]


def test_every_edge_whose_condition_holds_is_followed(database: SqliteDb) -> None:
    async def is_from_a(result: RunResult, messages: Sequence[Message], config: RunConfig) -> bool:
        return result.output_text == messages[-1].content == "a(in)" and config.extra == {"k": 1}

    graph = (
        WorkflowBuilder(contents("a"), name="fan", database=database)
        .add_edge("a", contents("b"), condition=is_from_a)
        .add_edge("a", contents("c"))
        .add_edge("a", contents("d"), condition=lambda *_: False)
        .add_edge("b", contents("e"))
        .add_edge("c", "e")
        .build()
    )
    result = graph.run_sync("in", RunConfig(extra={"k": 1}))
    assert result.metadata["workflow_steps"] == ["a", "b", "c", "e"]
    assert [message.content for message in result.messages] == [
        "in",
        "a(in)",
        "b(in, a(in))",  # nodes of one superstep do not read each other
        "c(in, a(in))",
        "e(in, a(in), b(in, a(in)), c(in, a(in)))",
    ]


def test_a_graph_may_go_round(database: SqliteDb) -> None:
    graph = WorkflowBuilder(contents("a"), database=database).add_edge(
        "a", "a", condition=lambda _result, messages, _config: len(messages) < 4
    )
    assert graph.build().run_sync("in").metadata["workflow_steps"] == ["a", "a", "a"]
    assert graph.build().run_sync("in", RunConfig(max_iterations=2)).metadata["workflow_steps"] == ["a", "a"]


def test_a_graph_pauses_in_two_nodes_at_once(database: SqliteDb) -> None:
    graph = (
        WorkflowBuilder(contents("a"), database=database)
        .add_edge("a", ASK("q", "?"))
        .add_edge("a", ASK("r", lambda messages, _config: f"{messages[-1].content}?"))
        .add_edge("q", contents("b"), condition=lambda result, *_: result.output_text == "one")
        .add_edge("r", "b")
        .build()
    )
    error = waiting(graph)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        asyncio.run(graph.resume(error.run_id, "one"))
    assert {error.step_name, caught.value.step_name} == {"q", "r"}
    result = asyncio.run(graph.resume(error.run_id, "two"))
    assert result.metadata["workflow_steps"] == ["a", "q", "r", "b"]


def test_a_condition_that_raises_fails_the_run(database: SqliteDb) -> None:
    graph = WorkflowBuilder(contents("a"), database=database).add_edge("a", contents("b"), condition=lambda *_: 1 / 0)
    with pytest.raises(WorkflowFailed, match="division by zero"):
        graph.build().run_sync("in")


def test_nodes_of_a_graph_are_distinct(database: SqliteDb) -> None:
    builder = WorkflowBuilder(contents("a"), database=database)
    with pytest.raises(Usage, match="Two nodes"):
        builder.add_executor(contents("a"))
    with pytest.raises(Usage, match="no node nowhere"):
        builder.add_edge("a", "nowhere")


def test_messages_of_participants_at_the_same_time_come_in_the_order_of_the_program(database: SqliteDb) -> None:
    async def slow(_messages: Sequence[Message], _config: RunConfig) -> str:
        await both.wait()
        return "slow"

    async def quick(_messages: Sequence[Message], _config: RunConfig) -> str:
        asyncio.get_running_loop().call_later(0.05, both.set)
        return "quick"

    both = asyncio.Event()
    workflow = SequentialWorkflow([ConcurrentWorkflow([slow, quick], name="both"), contents("last")], database=database)
    assert workflow.run_sync("in").output_text == "last(in, slow, quick)"


# ---- workflows as agents, and middleware ------------------------------------------------------------------------


class Recording(BaseAgentMiddleware):
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    async def wrap_run(self, context: AgentRunContext, handler: RunHandler) -> RunResult:
        self.log.append(f"{self.name} before {context.agent_name} {context.user_message}")
        result = await handler(context)
        self.log.append(f"{self.name} after {result.output_text}")
        return result


def test_middleware_runs_around_a_workflow_as_agent(database: SqliteDb) -> None:
    log: list[str] = []

    async def prefix(context: AgentRunContext, handler: RunHandler) -> RunResult:
        context.messages = [Message("user", f"more {context.user_message}")]
        return await handler(context)

    workflow = SequentialWorkflow([contents("a")], database=database)
    agent = workflow.as_agent(name="writer", middlewares=[Recording("outer", log), prefix, Recording("inner", log)])
    assert agent.run_sync("in").output_text == "a(more in)"
    assert log == [
        "outer before writer in",
        "inner before writer more in",
        "inner after a(more in)",
        "outer after a(more in)",
    ]


def test_middleware_may_answer_instead_of_the_workflow(database: SqliteDb) -> None:
    async def refuse(_context: AgentRunContext, _handler: RunHandler) -> RunResult:
        return RunResult([Message("assistant", "Not today.")])

    agent = SequentialWorkflow([contents("a")], database=database).as_agent(middlewares=[refuse])
    assert agent.run_sync("in").output_text == "Not today."


def test_a_pause_passes_through_middleware_and_a_resume_is_wrapped_too(database: SqliteDb) -> None:
    log: list[str] = []
    workflow = SequentialWorkflow([ASK("q", "?"), contents("a")], database=database)
    agent = workflow.as_agent(middlewares=[Recording("one", log)])
    with pytest.raises(HumanInterventionRequiredError) as caught:
        agent.run_sync("in")
    result = asyncio.run(agent.resume(caught.value.run_id, "yes"))
    assert result.output_text == "a(in, yes)"
    name = "sequential-workflow"
    assert log == [f"one before {name} in", f"one before {name} yes", "one after a(in, yes)"]


def test_middleware_without_an_effect_is_refused(database: SqliteDb) -> None:
    class OfModels(BaseAgentMiddleware):
        async def wrap_model_call(self, context: object, handler: Callable[[object], object]) -> object:
            return handler(context)

    workflow = SequentialWorkflow([contents("a")], database=database)
    with pytest.raises(Usage, match="wrap_model_call, which would never be called"):
        workflow.as_agent(middlewares=[OfModels()])
    with pytest.raises(Usage, match="no async wrap_run"):
        workflow.as_agent(middlewares=[lambda context, handler: None])
    agent = workflow.as_agent(middlewares=[BaseAgentMiddleware()])
    with pytest.raises(Usage, match="its own runs only"):
        SequentialWorkflow([agent], database=database)


def test_a_workflow_as_agent_takes_part_in_another_workflow(database: SqliteDb) -> None:
    inner = SequentialWorkflow([ASK("q", "?")]).as_agent(name="editor")
    workflow = SequentialWorkflow([contents("a"), inner, contents("b")], database=database)
    error = waiting(workflow)
    assert error.step_path == "editor/q"
    assert asyncio.run(workflow.resume(error.run_id, "yes")).output_text == "b(in, a(in), yes)"


def test_a_configuration_has_neither_tools_nor_middleware() -> None:
    for name in ("tools", "middlewares"):
        with pytest.raises(TypeError, match=name):
            RunConfig(**{name: []})


def test_middleware_of_an_agent_runs_around_its_turns_and_tool_calls(
    database: SqliteDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    def look_up(city: str) -> str:
        return f"It rains in {city}."

    async def turns(context: TurnContext, call_next: TakeNext) -> None:
        seen.append((context.agent, await call_next()))

    async def louder(context: ToolContext, arguments: object, call_next: CallNext) -> object:
        seen.append((context.tool, arguments))
        return str(await call_next()).upper()

    agent = {
        "model": {"provider": "openai", "name": "gpt-5-mini"},
        "strategy": "react",
        "tools": [look_up],
        "middleware": [louder, turns],
    }
    workflow = SequentialWorkflow([WorkflowBuilder.agent_step("weather", agent)], database=database)
    with model_server([Reply(calls=[Call("look_up", {"city": "Paris"})]), Reply("Rain.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        assert workflow.run_sync("in").output_text == "Rain."
    assert seen == [("look_up", {"city": "Paris"}), ("weather", "Rain.")]
    assert "IT RAINS IN PARIS." in server.requests[-1].text


# ---- streams and sessions ---------------------------------------------------------------------------------------


def test_the_replies_of_agents_are_streamed(database: SqliteDb, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"model": {"provider": "openai", "name": "gpt-5-mini"}}
    workflow = SequentialWorkflow([WorkflowBuilder.agent_step("writer", agent), contents("last")], database=database)

    async def collect() -> list[StreamChunk]:
        return [chunk async for chunk in workflow.stream("in")]

    with model_server([Reply("One two three.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        *pieces, done = asyncio.run(collect())
    assert "".join(piece.content for piece in pieces) == "One two three."
    assert {(piece.type, piece.name) for piece in pieces} == {("text", "writer")}
    assert done == StreamChunk("done", "last(in, One two three.)")


def test_a_stream_of_a_run_that_fails_raises(database: SqliteDb) -> None:
    workflow = SequentialWorkflow([lambda messages, config: 1 / 0], database=database)

    async def collect() -> list[StreamChunk]:
        return [chunk async for chunk in workflow.stream("in")]

    with pytest.raises(WorkflowFailed, match="division by zero"):
        asyncio.run(collect())


def test_agents_with_a_memory_read_the_session_of_the_run(database: SqliteDb, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"model": {"provider": "openai", "name": "gpt-5-mini"}, "memory": {"policy": "full"}}
    workflow = SequentialWorkflow([WorkflowBuilder.agent_step("chat", agent)], database=database)
    with model_server(lambda _request: Reply("Hello.")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        workflow.run_sync("My name is Ada.", session_id="trip")
        workflow.as_agent().run_sync("Who am I?", session_id="trip")
        assert "Ada" in server.requests[-1].text
        workflow.run_sync("Who am I?")
        assert "Ada" not in server.requests[-1].text


def test_a_checkpoint_is_recorded_for_each_turn_of_a_participant(database: SqliteDb) -> None:
    made = itertools.count()

    @checkpoint
    def draw() -> int:
        return next(made)

    def author(_messages: Sequence[Message], _config: RunConfig) -> str:
        return f"{draw()} {draw()}"

    workflow = HandoffWorkflow(
        [author], lambda _messages, _config, turn: "author" if turn < 3 else None, database=database
    )
    assert [each.content for each in workflow.run_sync("in").messages] == ["in", "0 1", "2 3", "4 5"]


class Chatbot:
    """An agent of a library whose run has another meaning."""

    name = "chatbot"

    def run(self, prompt: str) -> str:
        return prompt


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequentialWorkflow([Chatbot()]), r"The method run of the agent chatbot takes \(prompt\)"),
        (lambda: SequentialWorkflow([lambda text: text]), r"The participant <lambda> takes \(text\)"),
        (lambda: WorkflowBuilder.step("s", "text"), "The participant s is str, which cannot be called"),
        (lambda: ASK("q", lambda messages: "?"), r"The prompt of q takes \(messages\)"),
        (lambda: ASK("q", "?", resolver=lambda: "yes"), r"The resolver of q takes \(\)"),
        (
            lambda: HandoffWorkflow([contents("a")], lambda messages, config: None),
            "The selector of handoff-workflow takes",
        ),
        (
            lambda: WorkflowBuilder(contents("a")).add_edge("a", contents("b"), condition=lambda result: True),
            "The condition of the edge from a to b takes",
        ),
    ],
)
def test_a_function_that_the_run_could_not_call_is_refused_when_the_workflow_is_built(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(Usage, match=message):
        make()


def test_the_output_of_a_participant_is_bounded(database: SqliteDb) -> None:
    def writer(length: int) -> SequentialWorkflow:
        return SequentialWorkflow([lambda _messages, _config: "x" * length], database=database)

    assert len(writer(MAX_OUTPUT_CHARS).run_sync("in").output_text) == MAX_OUTPUT_CHARS
    with pytest.raises(WorkflowFailed, match="returned 1,000,001 characters; at most 1,000,000 are kept"):
        writer(MAX_OUTPUT_CHARS + 1).run_sync("in")
