"""Workflows of steps, run on the engine that runs every spec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from kneo.errors import NotFound
from kneo.records.run import RunStatus
from kneo.sdk.db import Database, scratch
from kneo.sdk.failures import WorkflowFailed
from kneo.sdk.host import Host, Standing, run_sync
from kneo.sdk.run.workflow import WorkflowEvent
from kneo.sdk.workflow.containers import Member, Steps, as_primitives
from kneo.sdk.workflow.events import Follower
from kneo.sdk.workflow.output import WorkflowRunOutput, output_of
from kneo.sdk.workflow.plan import Json, Plan
from kneo.sdk.workflow.requirements import Requirement
from kneo.sdk.workflow.types import spelled
from kneo.store import runs
from kneo.store.run_filter import RunFilter

MAX_SESSION_RUNS = 1_000


@dataclass(frozen=True)
class Session:
    """A conversation: the runs of one workflow that belong together, oldest first."""

    session_id: str | None
    runs: Sequence[WorkflowRunOutput]


class Workflow:
    """Steps that run one after the other.

    Args:
        name: What its runs are called.
        steps: Primitives and functions.
        db: Where its runs are kept; left out: in a database that ends with this process.
        description: What it is for.
        session_id: The conversation that its runs belong to; left out: one of this object's own. Name it where another
            process has to find the runs again.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        db: Database | None = None,
        description: str | None = None,
        session_id: str | None = None,
    ) -> None:
        self.name = name
        self.steps = as_primitives(steps)
        self.description = description
        self.session_id = session_id or f"session_{uuid4().hex}"
        self._db = db
        self._plan()  # what cannot be written down is refused here, not when it runs

    @property
    def db(self) -> Database:
        """Where its runs are kept."""
        if self._db is None:
            self._db = scratch()
        return self._db

    def spec(self) -> Mapping[str, object]:
        """Return the spec that is run."""
        return self._plan()[1]

    def as_step(self) -> Steps:
        """Return the workflow as a step of another one: its steps, in a row."""
        return Steps(self.name, self.steps, description=self.description)

    # ---- run --------------------------------------------------------------------------------------------------

    def run(
        self,
        input: object,  # noqa: A002 - the name that programs use
        *,
        session_id: str | None = None,
        additional_data: Json | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | Iterator[WorkflowEvent]:
        """Run to the next pause or the end.

        Args:
            input: A text; anything else passes on as JSON.
            session_id: The conversation that the run belongs to.
            additional_data: What steps are told beside their input.
            stream: Return the events as they happen, instead of how the run stands then.

        Raises:
            WorkflowFailed: a step failed and nothing caught it.
        """
        running = self._start(input, session_id, additional_data)
        return running.follow(0) if stream else run_sync(running.drive())

    async def arun(
        self,
        input: object,  # noqa: A002 - the name that programs use
        *,
        session_id: str | None = None,
        additional_data: Json | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | AsyncIterator[WorkflowEvent]:
        """Do as ``run`` does, on the caller's event loop."""
        running = await asyncio.to_thread(self._start, input, session_id, additional_data)
        return _async(running.follow(0)) if stream else await running.drive()

    # ---- continue ---------------------------------------------------------------------------------------------

    def continue_run(
        self,
        run_output: WorkflowRunOutput | None = None,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        step_requirements: Sequence[Requirement] | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | Iterator[WorkflowEvent]:
        """Send what was said about a paused run's requirements and go on with it.

        Args:
            run_output: The run, with its resolved requirements.
            run_id: The run by its id, with ``step_requirements``; a run that was interrupted needs none.
            session_id: The run's conversation, which has to be that.
            step_requirements: Requirements that are resolved.
            stream: As for ``run``.

        Raises:
            ValueError: the run is not paused, or none of what it asks is resolved.
            Conflict: somebody else has answered, or time has: nothing was done with this answer.
            WorkflowFailed: as ``run``.
        """
        running, seen = self._answered(run_output, run_id, session_id, step_requirements)
        return running.follow(seen) if stream else run_sync(running.drive())

    async def acontinue_run(
        self,
        run_output: WorkflowRunOutput | None = None,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        step_requirements: Sequence[Requirement] | None = None,
        stream: bool = False,
    ) -> WorkflowRunOutput | AsyncIterator[WorkflowEvent]:
        """Do as ``continue_run`` does, on the caller's event loop."""
        said = (run_output, run_id, session_id, step_requirements)
        running, seen = await asyncio.to_thread(self._answered, *said)
        return _async(running.follow(seen)) if stream else await running.drive()

    # ---- look -------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> WorkflowRunOutput:
        """Read how a run stands.

        Raises:
            NotFound: it is none of this workflow's.
        """
        running = self._running(run_id)
        return output_of(running.plan, running.look())

    def get_session(self, session_id: str | None = None) -> Session:
        """Read a conversation; left out: the workflow's own."""
        wanted = session_id or self.session_id
        plan, _ = self._plan()
        host = Host(self.db, plan.work)
        where = RunFilter(workflow_name=self.name, session_id=wanted)
        with host.store.read() as tx:
            found = runs.list_runs(tx, where, limit=MAX_SESSION_RUNS, offset=0)
        ids = sorted(run.id for run in found)
        return Session(wanted, [output_of(plan, host.look(run_id)) for run_id in ids])

    # ---- the parts --------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Plan, Mapping[str, object]]:
        plan = Plan()
        workflow: Json = {"type": "sequential", "name": self.name, "steps": plan.all_of(self.steps, "")}
        about = {"description": self.description} if self.description else {}
        return plan, {"agent": {"name": self.name, **about}, "workflow": workflow, "components": plan.components}

    def _running(self, run_id: str | None) -> _Running:
        plan, tree = self._plan()
        follower = Follower(plan, self.name)
        plan.host = host = Host(self.db, plan.work, follower.began)
        running = _Running(plan, tree, host, follower, run_id or "")
        if run_id is not None and running.look().run.workflow_name != self.name:
            msg = f"The run {run_id} is none of {self.name}."
            raise NotFound(msg)
        return running

    def _start(self, given: object, session_id: str | None, data: Json | None) -> _Running:
        running = self._running(None)
        session = session_id or self.session_id
        told = {"additional_data": data or {}}
        running.run_id = running.host.start(running.tree, spelled(given), told, session_id=session).id
        return running

    def _answered(
        self,
        run_output: WorkflowRunOutput | None,
        run_id: str | None,
        session_id: str | None,
        requirements: Sequence[Requirement] | None,
    ) -> tuple[_Running, int]:
        """Record what was said, before anything happens because of it."""
        wanted = run_output.run_id if run_output is not None else run_id
        if wanted is None:
            msg = "continue_run takes a run_output or a run_id."
            raise ValueError(msg)
        running = self._running(wanted)
        running.host.catch_up()
        run = running.look().run
        if session_id is not None and run.metadata.get("session_id") != session_id:
            msg = f"The run {wanted} does not belong to the session {session_id}."
            raise ValueError(msg)
        if run.status.is_final:
            msg = f"The run {wanted} is not paused; it is {run.status}."
            raise ValueError(msg)
        given: Sequence[Requirement] = requirements or ()
        if run_output is not None and requirements is None:
            given = (*run_output.step_requirements, *run_output.error_requirements)
        running.answer(run.status, [each for each in given if each.said is not None])
        return running, run.trace_count


@dataclass
class _Running:
    """One run and everything needed to go on with it."""

    plan: Plan
    tree: Mapping[str, object]
    host: Host
    follower: Follower
    run_id: str

    def look(self) -> Standing:
        return self.host.look(self.run_id)

    def answer(self, status: RunStatus, said: Sequence[Requirement]) -> None:
        if not said and status is RunStatus.PAUSED:
            open_ = [each.step_name for each in output_of(self.plan, self.look()).active_requirements]
            msg = f"Nothing of what the run {self.run_id} asks is resolved: {', '.join(open_)}."
            raise ValueError(msg)
        for requirement in said:
            assert requirement.said is not None
            self.host.decide(requirement.task, requirement.said)

    async def drive(self) -> WorkflowRunOutput:
        return self._told(await self.host.drive(self.run_id))

    def follow(self, seen: int) -> Iterator[WorkflowEvent]:
        return self.follower.follow(self.host, self.run_id, seen=seen)

    def _told(self, standing: Standing) -> WorkflowRunOutput:
        run = standing.run
        if run.status in {RunStatus.FAILED, RunStatus.EXPIRED, RunStatus.TIMED_OUT}:
            assert run.error is not None
            raise WorkflowFailed(run.id, run.status.value, run.error.type, run.error.message)
        return output_of(self.plan, standing)


async def _async(events: Iterator[WorkflowEvent]) -> AsyncIterator[WorkflowEvent]:
    while (event := await asyncio.to_thread(next, events, None)) is not None:
        yield event
