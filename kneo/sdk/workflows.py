"""Workflows of agents, functions and people, built in Python."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kneo.errors import NotFound, Usage
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.sdk.code import call
from kneo.sdk.db import Database, scratch
from kneo.sdk.failures import WorkflowFailed
from kneo.sdk.host import Host, Standing, run_sync
from kneo.sdk.messages import (
    HumanInterventionRequest,
    HumanInterventionRequiredError,
    Prompt,
    Resolver,
    RunConfig,
    RunResult,
    Said,
    as_messages,
    as_text,
)
from kneo.sdk.participants import (
    AgentStep,
    Draft,
    Function,
    FunctionStep,
    HumanInTheLoopStep,
    JournalEntry,
    participant,
)
from kneo.sdk.transcript import Transcript
from kneo.spec.models import Agent
from kneo.tasks.decisions import DecisionRequest

__all__ = ["HumanInTheLoopStep", "Workflow", "WorkflowBuilder", "WorkflowFailed"]


@dataclass
class Workflow:
    """A workflow that can run. Its runs are in its database; without one, in one that ends with this process."""

    part: JournalEntry
    database: Database | None = None
    _configs: dict[str, RunConfig] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def supports_streaming(self) -> bool:
        """Whether its output can be had while it is made; never where it asks people."""
        draft, _, _ = self._draft()
        return not draft.humans

    def spec(self) -> Mapping[str, object]:
        """Return the spec that is run."""
        _, _, tree = self._draft()
        return tree

    async def run(self, messages: Said, config: RunConfig | None = None) -> RunResult:
        """Run to the end.

        Raises:
            HumanInterventionRequiredError: it waits for a person whom no resolver stood in for.
            WorkflowFailed: it failed or was cancelled.
        """
        written = self._written()
        given = as_messages(messages)
        if not given:
            msg = "A run needs at least one message."
            raise Usage(msg)
        earlier = [[message.role, message.content, message.name] for message in given[:-1]]
        metadata = {"messages": earlier, "role": given[-1].role, "name": given[-1].name}
        run = await asyncio.to_thread(written.host.start, written.tree, given[-1].content, metadata)
        self._configs[run.id] = config or RunConfig()
        return await written.go(run.id)

    async def resume(self, run_id: str, response: Said | None = None, config: RunConfig | None = None) -> RunResult:
        """Go on with a run that waits, in this process or another.

        Args:
            run_id: Which run.
            response: The answer to its first open question; left out: resolvers are asked again.
            config: What participants are handed from here on.

        Raises:
            NotFound: there is no such run of this workflow, or it asks nothing.
            HumanInterventionRequiredError, WorkflowFailed: as ``run``.
        """
        written = self._written()
        standing = await asyncio.to_thread(written.host.look, run_id)
        if standing.run.workflow_name != self.name:
            msg = f"The run {run_id} is one of {standing.run.workflow_name}, not of {self.name}."
            raise NotFound(msg)
        self._configs[run_id] = config or self._configs.get(run_id) or RunConfig()
        if response is not None:
            task = next(iter(_open(standing)), None)
            if task is None:
                msg = f"The run {run_id} asks nothing."
                raise NotFound(msg)
            await asyncio.to_thread(written.host.decide, task, _answer(task, response))
        return await written.go(run_id)

    def run_sync(self, messages: Said, config: RunConfig | None = None) -> RunResult:
        """Run to the end, without an event loop of one's own; raises what ``run`` does."""
        return run_sync(self.run(messages, config))

    def stream(self, _messages: Said, _config: RunConfig | None = None) -> None:
        """Refuse: what asks people has no output to stream before they answer.

        Raises:
            Usage: always.
        """
        msg = f"The workflow {self.name} cannot be streamed; run it, or follow its run's events over HTTP."
        raise Usage(msg, code="streaming_unsupported")

    def _draft(self) -> tuple[Draft, Transcript, Mapping[str, object]]:
        transcript = Transcript(self._configs)
        transcript.draft = draft = Draft(conversation=transcript)
        workflow = self.part.declared(draft, "")
        return draft, transcript, {"agent": {"name": self.name}, "workflow": workflow, "components": draft.components}

    def _written(self) -> _Written:
        draft, transcript, tree = self._draft()
        if self.database is None:
            self.database = scratch()
        transcript.host = Host(self.database, draft.work)
        return _Written(draft, transcript, tree, transcript.host)


@dataclass(frozen=True)
class _Written:
    """A workflow as it is run."""

    draft: Draft
    transcript: Transcript
    tree: Mapping[str, object]
    host: Host

    async def go(self, run_id: str) -> RunResult:
        """Drive, and let resolvers answer, until nothing is left that somebody here could do."""
        while True:
            standing = await self.host.drive(run_id)
            if standing.run.status is not RunStatus.PAUSED:
                return self._result(standing)
            if not await self._resolved(standing):
                task = _open(standing)[0]
                request = self._request(standing, task)
                raise HumanInterventionRequiredError(
                    request, run_id=run_id, continuation_id=task.id, step_path=task.step_path
                )

    async def _resolved(self, standing: Standing) -> bool:
        """Let resolvers answer what is open; say whether any did."""
        answered = False
        for task in _open(standing):
            step = self.draft.humans.get(task.step_path)
            if step is None or step.resolver is None:
                continue
            said = await call(step.resolver, self._request(standing, task))
            if said is None:
                continue
            await asyncio.to_thread(self.host.decide, task, _answer(task, said))
            answered = True
        return answered

    def _request(self, standing: Standing, task: HumanTask) -> HumanInterventionRequest:
        step = self.draft.humans.get(task.step_path)
        return HumanInterventionRequest(
            step_name=task.step_id,
            prompt=task.prompt,
            messages=self.transcript.told(standing, task.step_path, task.subject),
            config=self.transcript.config(standing.run.id),
            metadata=dict(step.metadata) if step else {},
        )

    def _result(self, standing: Standing) -> RunResult:
        run = standing.run
        if run.status is not RunStatus.SUCCEEDED:
            error = run.error
            kind, message = (error.type, error.message) if error else (run.status.value, f"The run is {run.status}.")
            raise WorkflowFailed(run.id, run.status.value, kind, message)
        metadata: dict[str, object] = {"run_id": run.id, "workflow_steps": self.transcript.visible(standing)}
        last = standing.tasks[-1] if standing.tasks else None
        if last is not None:
            metadata |= {"human_in_the_loop": True, "human_step": last.step_id, "human_prompt": last.prompt}
        if run.metadata.get("outputs"):
            metadata["outputs"] = run.metadata["outputs"]
        return RunResult(messages=self.transcript.told(standing, "", run.output_text or ""), metadata=metadata)


def _open(standing: Standing) -> Sequence[HumanTask]:
    return [task for task in standing.tasks if task.status in UNRESOLVED]


def _answer(task: HumanTask, said: object) -> DecisionRequest:
    text = as_text(said, f"The resolver of {task.step_id}")
    return DecisionRequest(
        request_id=task.request_id,
        decision=DecisionKind.PROVIDED,
        content=text,
        expect_digest=task.subject_digest,
    )


class WorkflowBuilder:
    """Makes workflows and their steps."""

    @staticmethod
    def human_step(
        name: str,
        prompt: Prompt,
        *,
        resolver: Resolver | None = None,
        description: str = "",
        response_role: str = "user",
        metadata: Mapping[str, object] | None = None,
    ) -> HumanInTheLoopStep:
        """Make a step that asks a person.

        Args:
            name: Its name in the workflow.
            prompt: The question, or ``f(messages, config)`` that makes it.
            resolver: Asked first, inside the run; what it returns is the answer, ``None`` leaves the question open.
            description: What it is about, for whoever sees it in a list.
            response_role: As whose message the answer enters the conversation.
            metadata: Facts shown beside the question.
        """
        return HumanInTheLoopStep(
            name=name,
            prompt=prompt,
            resolver=resolver,
            description=description,
            response_role=response_role,
            metadata=metadata or {},
        )

    @staticmethod
    def function_step(name: str, function: Function, *, description: str = "") -> FunctionStep:
        """Make a step that calls ``function(messages, config)``, sync or async."""
        return FunctionStep(name=name, function=function, description=description)

    @staticmethod
    def agent_step(name: str, agent: Agent | Mapping[str, object], *, description: str = "") -> AgentStep:
        """Make a step that an agent of the spec language answers."""
        return AgentStep(name=name, agent=agent, description=description)

    @staticmethod
    def sequential(members: Sequence[object], *, name: str, database: Database | None = None) -> Workflow:
        """One after the other."""
        return _workflow("sequential", members, name, database)

    @staticmethod
    def concurrent(members: Sequence[object], *, name: str, database: Database | None = None) -> Workflow:
        """At the same time, on the same messages."""
        return _workflow("concurrent", members, name, database)

    @staticmethod
    def handoff(
        members: Sequence[object],
        *,
        name: str,
        sequence: Sequence[str] = (),
        max_iterations: int | None = None,
        database: Database | None = None,
    ) -> Workflow:
        """One participant hands over to the next; ``sequence`` names them in order, left out: as they stand."""
        settings: dict[str, object] = {"selector": {"type": "sequence", "sequence": list(sequence)}}
        if max_iterations is not None:
            settings["max_iterations"] = max_iterations
        return _workflow("handoff", members, name, database, settings)

    @staticmethod
    def group_chat(
        members: Sequence[object], *, name: str, rounds: int = 1, database: Database | None = None
    ) -> Workflow:
        """Everybody in turn, for a number of rounds."""
        return _workflow("group-chat", members, name, database, {"rounds": rounds})

    @staticmethod
    def graph(
        nodes: Sequence[object],
        edges: Sequence[tuple[str, str] | tuple[str, str, Mapping[str, object]]],
        *,
        name: str,
        start: str,
        max_steps: int = 50,
        database: Database | None = None,
    ) -> Workflow:
        """Nodes and the ways between them; an edge is ``(from, to)`` or ``(from, to, condition)`` of the spec language."""
        ways = [
            {"from": edge[0], "to": edge[1], **({"condition": dict(edge[2])} if len(edge) == 3 else {})}
            for edge in edges
        ]
        settings: dict[str, object] = {"start": start, "edges": ways, "max_steps": max_steps}
        return _workflow("graph", nodes, name, database, settings)


def _workflow(
    family: str,
    members: Sequence[object],
    name: str,
    database: Database | None,
    settings: Mapping[str, object] | None = None,
) -> Workflow:
    taken = [participant(member) for member in members]
    names = [member.name for member in taken]
    if len(set(names)) < len(names):
        msg = f"Two participants of {name} have the same name: {', '.join(names)}."
        raise Usage(msg)
    return Workflow(JournalEntry(name=name, family=family, members=taken, settings=settings or {}), database)
