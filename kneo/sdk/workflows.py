"""Workflows of functions, agents and people: their runs, and the builder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from kneo.embed.answers import DecisionRequest
from kneo.embed.database import RunDatabase, scratch
from kneo.embed.runs import RunSnapshot, WorkflowFailed, run_sync
from kneo.errors import NotFound, Usage
from kneo.records.conversation import ModelDelta
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.sdk.builder import call
from kneo.sdk.messages import (
    HumanInterventionRequest,
    HumanInterventionRequiredError,
    Message,
    Response,
    RunConfig,
    RunResult,
    StreamChunk,
    as_messages,
    as_text,
)
from kneo.sdk.middleware import AgentRunContext, RunHandler, RunMiddleware, dispatch, hook_of
from kneo.sdk.participants import (
    CONFIG,
    AgentStep,
    ConversationBuilder,
    FunctionStep,
    HumanInTheLoopStep,
    Participant,
    WorkflowPart,
    as_participant,
)
from kneo.sdk.routes import (
    DEFAULT_ITERATIONS,
    EdgeFunction,
    HandoffFunction,
    SelectedHandoff,
    SuperstepGraph,
    WorkflowEdge,
)

__all__ = [
    "ConcurrentWorkflow",
    "GroupChatWorkflow",
    "HandoffWorkflow",
    "HumanInTheLoopStep",
    "SequentialWorkflow",
    "Workflow",
    "WorkflowAgent",
    "WorkflowBuilder",
    "WorkflowEdge",
    "WorkflowFailed",
]


class Workflow:
    """A workflow that can run.

    Args:
        part: The workflow and its participants.
        database: The database of its runs; the default is a temporary one that ends with this process.
    """

    def __init__(self, part: WorkflowPart, database: RunDatabase | None = None) -> None:
        self.part = part
        self.database = database
        self._build(RunConfig())  # refuses what the spec cannot express now, not when the workflow runs

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def supports_streaming(self) -> bool:
        """Whether the output can be streamed: not when the workflow asks people."""
        return not self._build(RunConfig()).humans

    def spec(self, config: RunConfig | None = None) -> Mapping[str, object]:
        """Return the spec that runs."""
        return self._build(config or RunConfig()).tree

    async def run(
        self, messages: Response, config: RunConfig | None = None, *, session_id: str | None = None
    ) -> RunResult:
        """Run to the end.

        Args:
            messages: The conversation so far.
            config: The configuration of the run.
            session_id: The session of the run: agents with a ``memory`` read its earlier turns.

        Raises:
            HumanInterventionRequiredError: a question is open, and no resolver answered it.
            WorkflowFailed: the run failed or was cancelled.
        """
        builder, run_id = await self._start(messages, config or RunConfig(), session_id)
        return await _drive(builder, run_id)

    async def resume(self, run_id: str, response: Response | None = None, config: RunConfig | None = None) -> RunResult:
        """Continue a paused run, in this process or another one.

        Args:
            run_id: The run.
            response: The answer to its first open question; without one, resolvers are called again.
            config: The configuration for functions and people from here on, in this process and others; the default is
                the one so far. Agents keep the settings of the start.

        Raises:
            NotFound: the run does not exist, belongs to another workflow, or has no open question.
            HumanInterventionRequiredError, WorkflowFailed: as ``run``.
        """
        builder = self._open(config or RunConfig())
        snapshot = await asyncio.to_thread(builder.host.find, run_id, self.name)
        if config is not None:
            await asyncio.to_thread(builder.host.record, run_id, "", CONFIG, json.dumps(config.encode()))
        if response is not None:
            if not snapshot.open_tasks:
                msg = f"The run {run_id} has no open question."
                raise NotFound(msg)
            task = snapshot.open_tasks[0]
            await asyncio.to_thread(builder.host.decide, task, _answer(task, response))
        return await _drive(builder, run_id)

    def run_sync(
        self, messages: Response, config: RunConfig | None = None, *, session_id: str | None = None
    ) -> RunResult:
        """Run to the end in synchronous code; raises what ``run`` raises."""
        return run_sync(self.run(messages, config, session_id=session_id))

    def as_agent(
        self,
        *,
        name: str | None = None,
        description: str = "",
        system_prompt: str | None = None,
        middlewares: Sequence[RunMiddleware] = (),
    ) -> WorkflowAgent:
        """Return the workflow as an agent, with middleware around its runs."""
        return WorkflowAgent(self, name or self.name, description, system_prompt, middlewares)

    def stream(self, messages: Response, config: RunConfig | None = None) -> AsyncIterator[StreamChunk]:
        """Run to the end, and return the pieces of the agents' replies while they arrive.

        Raises:
            Usage: ``streaming_unsupported``: the workflow asks people, and has no output before their answers.
        """
        if not self.supports_streaming:
            msg = f"The workflow {self.name} asks people and cannot be streamed."
            raise Usage(msg, code="streaming_unsupported", hint="Run it, and resume it with the answer.")
        return self._stream(messages, config)

    async def _stream(self, messages: Response, config: RunConfig | None) -> AsyncIterator[StreamChunk]:
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[StreamChunk | None]()

        def receive(delta: ModelDelta) -> None:
            chunk = StreamChunk("text", delta.text, delta.step_id.rpartition("/")[2])
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, chunk)

        builder, run_id = await self._start(messages, config or RunConfig(), None)
        with builder.host.listen(run_id, receive):
            running = asyncio.ensure_future(_drive(builder, run_id))
            running.add_done_callback(lambda _: pieces.put_nowait(None))
            try:
                while (chunk := await pieces.get()) is not None:
                    yield chunk
                result = await running
            finally:
                if running.cancel():
                    await asyncio.wait([running])
        while not pieces.empty():
            late = pieces.get_nowait()
            if late is not None:
                yield late
        yield StreamChunk("done", result.output_text)

    async def _start(
        self, messages: Response, config: RunConfig, session_id: str | None
    ) -> tuple[ConversationBuilder, str]:
        """Record a run, without executing it."""
        conversation = as_messages(messages)
        if not conversation:
            msg = "A run needs at least one message."
            raise Usage(msg)
        encoded, builder = config.encode(), self._open(config)
        *earlier, last = conversation
        history = [[message.role, message.content, message.name] for message in earlier]
        metadata = {"messages": history, "role": last.role, "name": last.name, CONFIG: encoded}
        start = partial(builder.host.start, builder.tree, last.content, metadata, session_id=session_id)
        return builder, (await asyncio.to_thread(start)).id

    def _build(self, config: RunConfig) -> ConversationBuilder:
        builder = ConversationBuilder(config)
        builder.finish(self.name, self.part.workflow(builder, ""))
        return builder

    def _open(self, config: RunConfig) -> ConversationBuilder:
        builder = self._build(config)
        self.database = self.database or scratch()
        builder.open(self.database)
        return builder


class WorkflowAgent:
    """A workflow as an agent: it answers messages, and takes part in other workflows.

    Middleware runs around each call of ``run`` and ``resume``, in this process. A pause passes through it as
    ``HumanInterventionRequiredError``.

    Raises:
        Usage: a middleware has hooks that do not apply to workflows.
    """

    def __init__(
        self,
        workflow: Workflow,
        name: str,
        description: str = "",
        system_prompt: str | None = None,
        middlewares: Sequence[RunMiddleware] = (),
    ) -> None:
        self.workflow = workflow
        self.name = name
        self.description = description
        self.system_prompt = system_prompt
        self.hooks = [hook_of(each) for each in middlewares]

    @property
    def part(self) -> WorkflowPart:
        """The workflow, as a participant of another one.

        Raises:
            Usage: the agent has middleware or instructions, which a workflow around it would skip.
        """
        if self.hooks or self.system_prompt is not None:
            msg = f"The agent {self.name} has middleware or a system_prompt, which apply to its own runs only."
            raise Usage(msg, hint="Pass the workflow itself as a participant, and wrap the outermost one.")
        return replace(self.workflow.part, name=self.name, description=self.description)

    async def run(
        self, messages: Response, config: RunConfig | None = None, *, session_id: str | None = None
    ) -> RunResult:
        """Run to the end; raises what ``Workflow.run`` raises."""

        async def terminal(context: AgentRunContext) -> RunResult:
            return await self.workflow.run(context.messages, context.run_config, session_id=session_id)

        return await self._wrapped(as_messages(messages), config or RunConfig(), None, terminal)

    async def resume(self, run_id: str, response: Response | None = None, config: RunConfig | None = None) -> RunResult:
        """Continue a paused run; raises what ``Workflow.resume`` raises."""

        async def terminal(context: AgentRunContext) -> RunResult:
            answer = None if response is None else context.messages
            return await self.workflow.resume(run_id, answer, None if config is None else context.run_config)

        messages = () if response is None else as_messages(response)
        return await self._wrapped(messages, config or RunConfig(), run_id, terminal)

    def run_sync(
        self, messages: Response, config: RunConfig | None = None, *, session_id: str | None = None
    ) -> RunResult:
        """Run to the end in synchronous code; raises what ``run`` raises."""
        return run_sync(self.run(messages, config, session_id=session_id))

    async def _wrapped(
        self, messages: Sequence[Message], config: RunConfig, run_id: str | None, terminal: RunHandler
    ) -> RunResult:
        if self.system_prompt is not None and config.system_prompt is None:
            config = replace(config, system_prompt=self.system_prompt)
        context = AgentRunContext(self.name, list(messages), config, run_id)
        return await dispatch(self.hooks, context, terminal)


async def _drive(builder: ConversationBuilder, run_id: str) -> RunResult:
    """Execute a run, and call resolvers for its questions, until it ends or a question stays open."""
    while True:
        snapshot = await builder.host.drive(run_id)
        if snapshot.run.status is not RunStatus.PAUSED:
            return _result(builder, snapshot)
        if not await _resolve(builder, snapshot):
            task = snapshot.open_tasks[0]
            request = _request(builder, snapshot, task)
            raise HumanInterventionRequiredError(
                request, run_id=run_id, continuation_id=task.id, step_path=task.step_path
            )


async def _resolve(builder: ConversationBuilder, snapshot: RunSnapshot) -> bool:
    """Call the resolvers of open questions; return whether one of them decided its question.

    Below the quorum of a question its answer is one vote, and the question stays open.
    """
    decided = False
    for task in snapshot.open_tasks:
        step = builder.humans.get(task.step_path)
        if step is None or step.resolver is None:
            continue
        response = await call(step.resolver, _request(builder, snapshot, task))
        if response is not None:
            answered = await asyncio.to_thread(builder.host.decide, task, _answer(task, response))
            decided = decided or answered.status not in UNRESOLVED
    return decided


def _request(builder: ConversationBuilder, snapshot: RunSnapshot, task: HumanTask) -> HumanInterventionRequest:
    step = builder.humans.get(task.step_path)
    return HumanInterventionRequest(
        step_name=task.step_id,
        prompt=task.prompt,
        messages=builder.conversation(snapshot, task.step_path, task.subject),
        config=builder.config_of(snapshot),
        metadata=dict(step.metadata or {}) if step else {},
    )


def _result(builder: ConversationBuilder, snapshot: RunSnapshot) -> RunResult:
    run = snapshot.run
    if run.status is not RunStatus.SUCCEEDED:
        raise WorkflowFailed(run)
    metadata: dict[str, object] = {"run_id": run.id, "workflow_steps": builder.visible(snapshot)}
    if snapshot.tasks:
        last = snapshot.tasks[-1]
        metadata |= {"human_in_the_loop": True, "human_step": last.step_id, "human_prompt": last.prompt}
    if run.metadata.get("outputs"):
        metadata["outputs"] = run.metadata["outputs"]
    return RunResult(messages=builder.conversation(snapshot, "", run.output_text or ""), metadata=metadata)


def _answer(task: HumanTask, response: object) -> DecisionRequest:
    return DecisionRequest(
        request_id=task.request_id,
        decision=DecisionKind.PROVIDED,
        content=as_text(response, f"The resolver of {task.step_id}"),
        expect_digest=task.subject_digest,
    )


class SequentialWorkflow(Workflow):
    """A workflow whose participants run one after the other."""

    def __init__(
        self,
        participants: Sequence[object],
        *,
        name: str = "sequential-workflow",
        description: str = "",
        database: RunDatabase | None = None,
    ) -> None:
        super().__init__(_part("sequential", participants, name, description), database)


class ConcurrentWorkflow(Workflow):
    """A workflow whose participants run at the same time, on the same messages."""

    def __init__(
        self,
        participants: Sequence[object],
        *,
        name: str = "concurrent-workflow",
        description: str = "",
        database: RunDatabase | None = None,
    ) -> None:
        super().__init__(_part("concurrent", participants, name, description), database)


class HandoffWorkflow(Workflow):
    """A workflow whose next participant a function selects.

    Args:
        participants: The participants.
        selector: ``f(messages, config, turn)`` returns the name of the next participant, or ``None`` to stop.
        name: The name of its runs.
        description: The description of the workflow.
        max_iterations: The most turns, unless the run's configuration says otherwise.
        database: The database of its runs.
    """

    def __init__(
        self,
        participants: Sequence[object],
        selector: HandoffFunction,
        *,
        name: str = "handoff-workflow",
        description: str = "",
        max_iterations: int = DEFAULT_ITERATIONS,
        database: RunDatabase | None = None,
    ) -> None:
        members = _members(participants, name)
        part = SelectedHandoff(
            name=name,
            family="handoff",
            members=members,
            description=description,
            select=selector,
            max_iterations=max_iterations,
        )
        super().__init__(part, database)


class GroupChatWorkflow(Workflow):
    """A workflow whose participants take turns, for a number of rounds."""

    def __init__(
        self,
        participants: Sequence[object],
        *,
        rounds: int = 1,
        name: str = "group-chat-workflow",
        description: str = "",
        database: RunDatabase | None = None,
    ) -> None:
        super().__init__(_part("group-chat", participants, name, description, rounds=rounds), database)


class WorkflowBuilder:
    """Builds workflows and their steps; an instance builds a graph from its first node.

    Args:
        start: The participant that runs first.
        name: The name of the graph's runs.
        description: The description of the graph.
        max_iterations: The most supersteps, unless the run's configuration says otherwise.
        database: The database of its runs.
    """

    human_step = HumanInTheLoopStep
    function_step = step = FunctionStep
    agent_step = AgentStep
    sequential = SequentialWorkflow
    concurrent = ConcurrentWorkflow
    group_chat = GroupChatWorkflow

    def __init__(
        self,
        start: object,
        *,
        name: str = "workflow",
        description: str = "",
        max_iterations: int = DEFAULT_ITERATIONS,
        database: RunDatabase | None = None,
    ) -> None:
        self._name, self._description, self._database = name, description, database
        self._max_iterations = max_iterations
        self._nodes: dict[str, Participant] = {}
        self._edges: list[WorkflowEdge] = []
        self._start = self._add(start)

    def add_executor(self, executor: object) -> Self:
        """Add a node.

        Raises:
            Usage: the node cannot take part, or another node has its name.
        """
        self._add(executor)
        return self

    def add_edge(
        self, source: object, target: object, *, condition: EdgeFunction | None = None, label: str = ""
    ) -> Self:
        """Add an edge between two nodes, or the names of added nodes; of a node's edges all that hold are followed.

        Raises:
            Usage: as ``add_executor``, or a name is none of a node.
        """
        self._edges.append(WorkflowEdge(self._add(source), self._add(target), condition, label))
        return self

    def build(self) -> Workflow:
        """Return the graph as a workflow."""
        part = SuperstepGraph(
            name=self._name,
            family="graph",
            members=list(self._nodes.values()),
            description=self._description,
            starts=[self._start],
            edges=list(self._edges),
            max_iterations=self._max_iterations,
        )
        return Workflow(part, self._database)

    def _add(self, node: object) -> str:
        if isinstance(node, str):
            if node not in self._nodes:
                msg = f"The graph {self._name} has no node {node}. Nodes: {', '.join(self._nodes)}."
                raise Usage(msg)
            return node
        participant = as_participant(node)
        if self._nodes.setdefault(participant.name, participant) != participant:
            msg = f"Two nodes of the graph {self._name} are called {participant.name}."
            raise Usage(msg)
        return participant.name

    @staticmethod
    def handoff(
        members: Sequence[object],
        *,
        name: str,
        sequence: Sequence[str] = (),
        max_iterations: int | None = None,
        database: RunDatabase | None = None,
    ) -> Workflow:
        """Build a workflow whose participants hand over to the next; ``sequence`` names them in another order.

        For a function that selects the next participant, make a ``HandoffWorkflow``.
        """
        limit = {} if max_iterations is None else {"max_iterations": max_iterations}
        order = {"type": "sequence", "sequence": list(sequence)}
        return Workflow(_part("handoff", members, name, "", selector=order, **limit), database)

    @staticmethod
    def graph(
        nodes: Sequence[object],
        edges: Sequence[tuple[str, str] | tuple[str, str, Mapping[str, object]]],
        *,
        name: str,
        start: str,
        max_steps: int = 50,
        database: RunDatabase | None = None,
    ) -> Workflow:
        """Build a graph of the spec language; of a node's edges the first that holds is followed.

        An edge is ``(from, to)`` or ``(from, to, condition)`` with a condition of the spec language. For conditions in Python,
        make an instance of the builder.
        """
        spec_edges = [
            {"from": edge[0], "to": edge[1], **({"condition": dict(edge[2])} if len(edge) == 3 else {})}
            for edge in edges
        ]
        part = _part("graph", nodes, name, "", start=start, edges=spec_edges, max_steps=max_steps)
        return Workflow(part, database)


def _part(family: str, members: Sequence[object], name: str, description: str, **settings: object) -> WorkflowPart:
    participants = _members(members, name)
    return WorkflowPart(name=name, family=family, members=participants, description=description, settings=settings)


def _members(members: Sequence[object], name: str) -> Sequence[Participant]:
    """Return the members of a workflow as participants.

    Raises:
        Usage: two have one name, there are none, or one cannot take part.
    """
    participants = [as_participant(member) for member in members]
    names = [participant.name for participant in participants]
    if len(set(names)) < len(names):
        msg = f"Two participants of {name} have the same name: {', '.join(names)}."
        raise Usage(msg)
    if not names:
        msg = f"The workflow {name} has no participants."
        raise Usage(msg)
    return participants
