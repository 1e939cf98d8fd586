"""Workflows of steps, executed by the engine that executes every spec, and the stream of their events."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kneo.clock import isoformat
from kneo.embed.database import RunDatabase, scratch
from kneo.embed.runs import ForkRequest, RunSnapshot, WorkflowFailed, run_in_background, run_sync
from kneo.embed.steps import Activity, StepContext
from kneo.records.conversation import ModelDelta
from kneo.records.run import Run, RunStatus, TraceEvent
from kneo.sdk.builder import Json
from kneo.sdk.run import workflow as events
from kneo.sdk.run.workflow import EXECUTOR_POSITIONS, WorkflowEvent
from kneo.sdk.workflow.containers import Member, Steps, as_primitives
from kneo.sdk.workflow.requirements import Requirement, WorkflowRunOutput
from kneo.sdk.workflow.step import STATE, StepBuilder, encode_state, read_state
from kneo.sdk.workflow.types import encode_content

MAX_SESSION_RUNS = 1_000
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Session:
    """The runs of one workflow that belong to one conversation, oldest first."""

    session_id: str | None
    runs: Sequence[WorkflowRunOutput]
    session_state: Mapping[str, object] = field(default_factory=dict)


class Workflow:
    """Steps that run one after the other.

    Args:
        name: The name of its runs.
        steps: Primitives, functions and workflows.
        db: The database of its runs; the default is a temporary one that ends with this process.
        description: The description of the workflow.
        session_id: The conversation of its runs, by which another process finds them; the default is a new one.
        session_state: The state of a session at its beginning: a map that its steps read and change.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        db: RunDatabase | None = None,
        description: str | None = None,
        session_id: str | None = None,
        session_state: Mapping[str, object] | None = None,
    ) -> None:
        encode_state(session_state)
        self.session_state = session_state or {}
        self.name = name
        self.steps = as_primitives(steps)
        self.description = description
        self.session_id = session_id or f"session_{uuid4().hex}"
        self._db = db
        self._build()  # refuses what the spec cannot express now, not when the workflow runs

    @property
    def db(self) -> RunDatabase:
        """The database of its runs."""
        self._db = self._db or scratch()
        return self._db

    def spec(self) -> Mapping[str, object]:
        """Return the spec that runs."""
        return self._build().tree

    def as_step(self) -> Steps:
        """Return the workflow as a step of another one: its steps, one after the other."""
        return Steps(self.name, self.steps, description=self.description)

    # ---- run --------------------------------------------------------------------------------------------------

    def run(
        self,
        input: object,  # noqa: A002 - the name that programs use
        *,
        session_id: str | None = None,
        additional_data: Json | None = None,
        session_state: Json | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | Iterator[WorkflowEvent]:
        """Run to the next pause or to the end.

        Args:
            input: A text; another value is passed on as JSON.
            session_id: The conversation of the run.
            additional_data: Data for every step.
            session_state: Values of the session's state, in place of those that its runs left.
            stream: Return events while they happen instead of the run's state at the end.

        Raises:
            WorkflowFailed: a step failed, and no fallback handled it.
        """
        execution = self._start(input, session_id, additional_data, session_state)
        return execution.follow() if stream else run_sync(execution.drive())

    async def arun(
        self,
        input: object,  # noqa: A002 - the name that programs use
        *,
        session_id: str | None = None,
        additional_data: Json | None = None,
        session_state: Json | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | AsyncIterator[WorkflowEvent]:
        """Run as ``run`` does, on the caller's event loop."""
        execution = await asyncio.to_thread(self._start, input, session_id, additional_data, session_state)
        return _async(execution.follow()) if stream else await execution.drive()

    def continue_run(
        self,
        run_output: WorkflowRunOutput | None = None,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        step_requirements: Sequence[Requirement] | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | Iterator[WorkflowEvent]:
        """Send the answers to a paused run's requirements, and continue the run.

        Args:
            run_output: The run, with its answered requirements.
            run_id: The id of the run, with ``step_requirements``; an interrupted run needs no requirements.
            session_id: The conversation that the run must belong to.
            step_requirements: Answered requirements.
            stream: As for ``run``.

        Raises:
            ValueError: the run is not paused, or no requirement is answered.
            Conflict: a question was answered by another person or by its deadline; nothing is recorded.
            WorkflowFailed: as ``run``.
        """
        execution = self._answer(run_output, run_id, session_id, step_requirements)
        return execution.follow() if stream else run_sync(execution.drive())

    async def acontinue_run(
        self,
        run_output: WorkflowRunOutput | None = None,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        step_requirements: Sequence[Requirement] | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | AsyncIterator[WorkflowEvent]:
        """Continue as ``continue_run`` does, on the caller's event loop."""
        execution = await asyncio.to_thread(self._answer, run_output, run_id, session_id, step_requirements)
        return _async(execution.follow()) if stream else await execution.drive()

    # ---- state ------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> WorkflowRunOutput:
        """Read the state of a run; a deadline that has passed is processed first.

        A run that a deadline answered is running: ``continue_run(run_id=…)`` continues it.

        Raises:
            NotFound: this workflow has no such run.
        """
        execution, snapshot = self._find(run_id)
        return WorkflowRunOutput.of(execution.builder, snapshot)

    def cancel_run(self, run_id: str) -> WorkflowRunOutput:
        """Cancel a run and withdraw its questions; a run that has ended stays as it is.

        Raises:
            NotFound: this workflow has no such run.
        """
        execution, _ = self._find(run_id)
        execution.builder.host.cancel(run_id)
        return self.get_run(run_id)

    def replay(
        self,
        run_id: str,
        *,
        from_step: str | None = None,
        input: str | None = None,  # noqa: A002 - the name that programs use
        answers: Mapping[str, object] | None = None,
        ask: Sequence[str] = (),
    ) -> WorkflowRunOutput:
        """Run again from a step of a run, as another run; recorded answers are used again where they still fit.

        Args:
            run_id: The run to repeat.
            from_step: The path of the step to begin at; the default is the first one.
            input: A new input of that step.
            answers: Answers that replace recorded ones, by the keys of the questions.
            ask: Questions to ask again, by their keys, or ``all``.

        Raises:
            NotFound: this workflow has no such run, or the run did not reach the step.
            WorkflowFailed: as ``run``.
        """
        execution, _ = self._find(run_id)
        request = ForkRequest(run_id=run_id, step=from_step, input=input, answers=answers or {}, ask=tuple(ask))
        execution.run_id = execution.builder.host.fork(request, before=None)
        return run_sync(execution.drive())

    def get_session(self, session_id: str | None = None) -> Session:
        """Read a conversation, the default is the workflow's own; passed deadlines are processed first."""
        session_id = session_id or self.session_id
        builder = self._build()
        builder.open(self.db)
        snapshots = self._snapshots(builder, session_id, MAX_SESSION_RUNS)
        if any(snapshot.open_tasks for snapshot in snapshots):
            builder.host.apply_timers()
            snapshots = self._snapshots(builder, session_id, MAX_SESSION_RUNS)
        state = read_state(snapshots[-1]) if snapshots else self.session_state
        return Session(session_id, [WorkflowRunOutput.of(builder, snapshot) for snapshot in snapshots], state)

    def _snapshots(self, builder: StepBuilder, session_id: str, limit: int) -> Sequence[RunSnapshot]:
        """Read the newest runs of a session, oldest first."""
        found = builder.host.list_runs(self.name, session_id=session_id, limit=limit)
        return [builder.host.snapshot(run_id) for run_id in sorted(found)]

    def _build(self) -> StepBuilder:
        builder = StepBuilder()
        workflow: Json = {"type": "sequential", "name": self.name, "steps": builder.sequence(self.steps, "")}
        builder.finish(self.name, workflow, **({"description": self.description} if self.description else {}))
        return builder

    def _find(self, run_id: str) -> tuple[_Execution, RunSnapshot]:
        """Read a run of this workflow; a deadline that has passed is processed first."""
        execution = _Execution(self._build(), self.db, self.name, run_id)
        host = execution.builder.host
        snapshot = host.find(run_id, self.name)
        if snapshot.open_tasks:
            host.apply_timers()
            snapshot = host.snapshot(run_id)
        return execution, snapshot

    def _start(
        self, content: object, session_id: str | None, data: Json | None, state: Mapping[str, object] | None
    ) -> _Execution:
        execution = _Execution(self._build(), self.db, self.name)
        builder, session_id = execution.builder, session_id or self.session_id
        last = self._snapshots(builder, session_id, 1)
        current = {**(read_state(last[0]) if last else self.session_state), **(state or {})}
        encode_state(current)
        metadata = {"additional_data": data or {}, STATE: current}
        execution.run_id = builder.host.start(builder.tree, encode_content(content), metadata, session_id=session_id).id
        return execution

    def _answer(
        self,
        run_output: WorkflowRunOutput | None,
        run_id: str | None,
        session_id: str | None,
        requirements: Sequence[Requirement] | None,
    ) -> _Execution:
        """Record the answers to requirements before the run continues."""
        run_id = run_output.run_id if run_output is not None else run_id
        if run_id is None:
            msg = "continue_run takes a run_output or a run_id."
            raise ValueError(msg)
        execution, snapshot = self._find(run_id)
        run = snapshot.run
        if session_id is not None and snapshot.session_id != session_id:
            msg = f"The run {run_id} does not belong to the session {session_id}."
            raise ValueError(msg)
        if run.status.is_final:
            msg = f"The run {run_id} is not paused; it is {run.status}."
            raise ValueError(msg)
        if run_output is not None and requirements is None:
            requirements = (*run_output.step_requirements, *run_output.error_requirements)
        execution.answer(snapshot, [each for each in requirements or () if each.answer is not None])
        execution.trace_count = run.trace_count
        return execution


class _Execution:
    """One run of a workflow, executed by this process.

    Attributes:
        trace_count: The number of the last trace event that ``follow`` leaves out.
    """

    def __init__(self, builder: StepBuilder, database: RunDatabase, workflow_name: str, run_id: str = "") -> None:
        self.builder = builder
        self.run_id = run_id
        self.trace_count = 0
        self._workflow_name = workflow_name
        self._arrived: queue.SimpleQueue[WorkflowEvent] = queue.SimpleQueue()
        builder.open(database, self._began)

    def answer(self, snapshot: RunSnapshot, requirements: Sequence[Requirement]) -> None:
        """Record the answers to requirements.

        Raises:
            ValueError: the run is paused, and no requirement is answered.
            Conflict: a question was answered by another person or by its deadline.
        """
        if not requirements and snapshot.run.status is RunStatus.PAUSED:
            open_requirements = WorkflowRunOutput.of(self.builder, snapshot).active_requirements
            names = ", ".join(each.step_name for each in open_requirements)
            msg = f"No requirement of the run {self.run_id} is resolved. Open: {names}."
            raise ValueError(msg)
        for requirement in requirements:
            assert requirement.answer is not None
            self.builder.host.decide(requirement.task, requirement.answer)

    async def drive(self) -> WorkflowRunOutput:
        """Execute the run to its next pause or to its end.

        Raises:
            WorkflowFailed: the run failed.
        """
        snapshot = await self.builder.host.drive(self.run_id)
        if snapshot.run.status in {RunStatus.FAILED, RunStatus.EXPIRED, RunStatus.TIMED_OUT}:
            raise WorkflowFailed(snapshot.run)
        return WorkflowRunOutput.of(self.builder, snapshot)

    def follow(self) -> Iterator[WorkflowEvent]:
        """Execute the run to its next pause or to its end, and yield its events.

        Starts of steps and content of agents come from this process, all other events from the trace of the run.
        """
        with self.builder.host.listen(self.run_id, self._received):
            yield from self._follow()

    def _follow(self) -> Iterator[WorkflowEvent]:
        driving = run_in_background(self.builder.host.drive(self.run_id))
        running = True
        while running:
            running = bool(wait([driving], timeout=LOOK_SECONDS).not_done)
            found = []
            while not self._arrived.empty():
                found.append(self._arrived.get())
            trace = self.builder.host.list_trace(self.run_id, after=self.trace_count)
            self.trace_count = max([self.trace_count, *(entry.sequence for entry in trace)])
            traced = [event for entry in trace if (event := self._event(entry)) is not None]
            yield from sorted([*traced, *found], key=lambda event: event.at)
        yield self._last(driving.result().run)

    def _received(self, delta: ModelDelta) -> None:
        step = self._step(delta.run_id, delta.step_id, isoformat(self.builder.host.store.clock.now()))
        if step is not None:
            self._arrived.put(events.RunContentEvent(**step, content=delta.text))

    def _began(self, activity: Activity, context: StepContext) -> None:
        step = self._step(context.run_id, activity.path, isoformat(self.builder.host.store.clock.now()))
        if step is not None:
            self._arrived.put(events.StepStartedEvent(**step))

    def _step(self, run_id: str, path: str | None, at: str) -> dict[str, Any] | None:
        """Return the fields of an event at a primitive; None where the path is not one of a primitive."""
        location = self.builder.locations.get(path or "")
        if location is None:
            return None
        return {
            "run_id": run_id,
            "at": at,
            "workflow_name": self._workflow_name,
            "step_id": path,
            "step_name": location.name,
            "step_index": location.index,
        }

    def _event(self, entry: TraceEvent) -> WorkflowEvent | None:
        if entry.type == "workflow_started":
            return events.WorkflowStartedEvent(
                run_id=entry.run_id, at=entry.timestamp, workflow_name=self._workflow_name
            )
        step = self._step(entry.run_id, entry.step_id, entry.timestamp)
        return self._step_event(entry, step) if step is not None else None

    def _step_event(self, entry: TraceEvent, step: dict[str, Any]) -> WorkflowEvent | None:
        match entry.type, entry.data:
            case "step_completed", {"output_preview": str(content)}:
                return events.StepCompletedEvent(**step, content=content)
            case "step_failed", {"error": {"message": str(error)}}:
                return events.StepErrorEvent(**step, error=error)
            case "human_intervention_requested", _:
                return self._question(entry, step)
            case "workflow_resumed", {"position": position, "decision": decision}:
                return _CONTINUED.get(position, events.StepContinuedEvent)(**step, decision=str(decision))
        return None

    def _question(self, entry: TraceEvent, step: dict[str, Any]) -> WorkflowEvent:
        task_id = str(entry.data.get("continuation_id"))
        task = next(task for task in self.builder.host.snapshot(entry.run_id).tasks if task.id == task_id)
        step |= {"message": task.prompt, "continuation_id": task_id}
        match entry.data.get("position"):
            case "route":
                return events.RouterPausedEvent(**step, available_choices=tuple(task.options or ()))
            case "after":
                return events.StepOutputReviewEvent(**step)
            case position if position in EXECUTOR_POSITIONS:
                return events.StepExecutorPausedEvent(**step, name=task.key, schema=task.answer_schema)
            case _:
                return events.StepPausedEvent(**step)

    def _last(self, run: Run) -> WorkflowEvent:
        common = {"run_id": run.id, "workflow_name": self._workflow_name, "at": run.updated_at}
        message = run.error.message if run.error else None
        match run.status:
            case RunStatus.PAUSED:
                return events.WorkflowPausedEvent(**common)
            case RunStatus.SUCCEEDED:
                return events.WorkflowCompletedEvent(**common, content=run.output_text)
            case RunStatus.CANCELLED:
                return events.WorkflowCancelledEvent(**common, reason=message)
            case _:
                return events.WorkflowErrorEvent(**common, error=message)


_CONTINUED: Mapping[
    object, type[events.StepContinuedEvent | events.RouterContinuedEvent | events.StepExecutorContinuedEvent]
] = {
    "route": events.RouterContinuedEvent,
    **dict.fromkeys(EXECUTOR_POSITIONS, events.StepExecutorContinuedEvent),
}


async def _async(events_: Iterator[WorkflowEvent]) -> AsyncIterator[WorkflowEvent]:
    while (event := await asyncio.to_thread(next, events_, None)) is not None:
        yield event
