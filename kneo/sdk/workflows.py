"""Workflows of functions, agents and people, built in Python with ``WorkflowBuilder``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kneo.errors import NotFound, Usage
from kneo.records.run import RunStatus
from kneo.records.task import DecisionKind, HumanTask
from kneo.sdk import (
    HumanInterventionRequest,
    HumanInterventionRequiredError,
    Response,
    RunConfig,
    RunResult,
    as_messages,
    as_text,
)
from kneo.sdk.builder import call
from kneo.sdk.db import RunDatabase, scratch
from kneo.sdk.host import RunSnapshot, WorkflowFailed, run_sync
from kneo.sdk.participants import (
    AgentStep,
    ConversationBuilder,
    FunctionStep,
    HumanInTheLoopStep,
    WorkflowPart,
    as_participant,
)
from kneo.tasks.decisions import DecisionRequest

__all__ = ["HumanInTheLoopStep", "Workflow", "WorkflowBuilder", "WorkflowFailed"]


@dataclass
class Workflow:
    """A workflow that can run.

    Attributes:
        part: The workflow and its participants.
        database: The database of its runs; the default is a temporary one that ends with this process.
    """

    part: WorkflowPart
    database: RunDatabase | None = None
    _configs: dict[str, RunConfig] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def supports_streaming(self) -> bool:
        """Whether the output can be streamed: not when the workflow asks people."""
        return not self._build().humans

    def spec(self) -> Mapping[str, object]:
        """Return the spec that runs."""
        return self._build().tree

    async def run(self, messages: Response, config: RunConfig | None = None) -> RunResult:
        """Run to the end.

        Raises:
            HumanInterventionRequiredError: a question is open, and no resolver answered it.
            WorkflowFailed: the run failed or was cancelled.
        """
        conversation = as_messages(messages)
        if not conversation:
            msg = "A run needs at least one message."
            raise Usage(msg)
        builder = self._open()
        *earlier, last = conversation
        history = [[message.role, message.content, message.name] for message in earlier]
        metadata = {"messages": history, "role": last.role, "name": last.name}
        run = await asyncio.to_thread(builder.host.start, builder.tree, last.content, metadata)
        self._configs[run.id] = config or RunConfig()
        return await _drive(builder, run.id)

    async def resume(self, run_id: str, response: Response | None = None, config: RunConfig | None = None) -> RunResult:
        """Continue a paused run, in this process or another one.

        Args:
            run_id: The run.
            response: The answer to its first open question; without one, resolvers are called again.
            config: The configuration for participants from here on.

        Raises:
            NotFound: the run does not exist, belongs to another workflow, or has no open question.
            HumanInterventionRequiredError, WorkflowFailed: as ``run``.
        """
        builder = self._open()
        snapshot = await asyncio.to_thread(builder.host.snapshot, run_id)
        if snapshot.run.workflow_name != self.name:
            msg = f"The run {run_id} belongs to the workflow {snapshot.run.workflow_name}, not to {self.name}."
            raise NotFound(msg)
        self._configs[run_id] = config or self._configs.get(run_id) or RunConfig()
        if response is not None:
            if not snapshot.open_tasks:
                msg = f"The run {run_id} has no open question."
                raise NotFound(msg)
            task = snapshot.open_tasks[0]
            await asyncio.to_thread(builder.host.decide, task, _answer(task, response))
        return await _drive(builder, run_id)

    def run_sync(self, messages: Response, config: RunConfig | None = None) -> RunResult:
        """Run to the end in synchronous code; raises what ``run`` raises."""
        return run_sync(self.run(messages, config))

    def stream(self, _messages: Response, _config: RunConfig | None = None) -> None:
        """Refuse to stream: a workflow that asks people has no output before their answers.

        Raises:
            Usage: always.
        """
        msg = f"The workflow {self.name} cannot be streamed. Run it, or read the events of its run over HTTP."
        raise Usage(msg, code="streaming_unsupported")

    def _build(self) -> ConversationBuilder:
        builder = ConversationBuilder(self._configs)
        builder.finish(self.name, self.part.workflow(builder, ""))
        return builder

    def _open(self) -> ConversationBuilder:
        builder = self._build()
        self.database = self.database or scratch()
        builder.open(self.database)
        return builder


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
    """Call the resolvers of open questions; return whether one of them answered."""
    answered = False
    for task in snapshot.open_tasks:
        step = builder.humans.get(task.step_path)
        if step is None or step.resolver is None:
            continue
        response = await call(step.resolver, _request(builder, snapshot, task))
        if response is not None:
            await asyncio.to_thread(builder.host.decide, task, _answer(task, response))
            answered = True
    return answered


def _request(builder: ConversationBuilder, snapshot: RunSnapshot, task: HumanTask) -> HumanInterventionRequest:
    step = builder.humans.get(task.step_path)
    return HumanInterventionRequest(
        step_name=task.step_id,
        prompt=task.prompt,
        messages=builder.conversation(snapshot, task.step_path, task.subject),
        config=builder.config(snapshot.run.id),
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


class WorkflowBuilder:
    """Builds workflows and their steps."""

    human_step = HumanInTheLoopStep
    function_step = FunctionStep
    agent_step = AgentStep

    @staticmethod
    def sequential(members: Sequence[object], *, name: str, database: RunDatabase | None = None) -> Workflow:
        """Build a workflow whose participants run one after the other."""
        return _workflow("sequential", members, name, database)

    @staticmethod
    def concurrent(members: Sequence[object], *, name: str, database: RunDatabase | None = None) -> Workflow:
        """Build a workflow whose participants run at the same time, on the same messages."""
        return _workflow("concurrent", members, name, database)

    @staticmethod
    def handoff(
        members: Sequence[object],
        *,
        name: str,
        sequence: Sequence[str] = (),
        max_iterations: int | None = None,
        database: RunDatabase | None = None,
    ) -> Workflow:
        """Build a workflow whose participants hand over to the next; ``sequence`` names them in another order."""
        limit = {} if max_iterations is None else {"max_iterations": max_iterations}
        selector = {"type": "sequence", "sequence": list(sequence)}
        return _workflow("handoff", members, name, database, selector=selector, **limit)

    @staticmethod
    def group_chat(
        members: Sequence[object], *, name: str, rounds: int = 1, database: RunDatabase | None = None
    ) -> Workflow:
        """Build a workflow whose participants take turns, for a number of rounds."""
        return _workflow("group-chat", members, name, database, rounds=rounds)

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
        """Build a graph; an edge is ``(from, to)`` or ``(from, to, condition)`` with a condition of the spec language."""
        spec_edges = [
            {"from": edge[0], "to": edge[1], **({"condition": dict(edge[2])} if len(edge) == 3 else {})}
            for edge in edges
        ]
        return _workflow("graph", nodes, name, database, start=start, edges=spec_edges, max_steps=max_steps)


def _workflow(
    family: str, members: Sequence[object], name: str, database: RunDatabase | None, **settings: object
) -> Workflow:
    participants = [as_participant(member) for member in members]
    names = [participant.name for participant in participants]
    if len(set(names)) < len(names):
        msg = f"Two participants of {name} have the same name: {', '.join(names)}."
        raise Usage(msg)
    return Workflow(WorkflowPart(name=name, family=family, members=participants, settings=settings), database)
