"""Runs of workflows whose steps are functions of this program: their start, execution and state in one database."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias, TypeVar

from kneo.agents.function_tools import ToolRegistry
from kneo.digest import digest_of
from kneo.embed.database import RunDatabase
from kneo.embed.steps import INSIDE, in_step
from kneo.embed.worker_lock import worker_lock
from kneo.errors import Invalid, NotFound
from kneo.function_context import StepContext
from kneo.records.conversation import ModelDelta
from kneo.records.run import Run, RunStatus, StepRecord, TraceEvent
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.assemble import open_sandboxes, services_of
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, cancel_run, fork
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.timers import tick
from kneo.runtime.engine.wait import RunSettled, find_run, wait_until_settled
from kneo.runtime.engine.worker import Driver
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Conversation
from kneo.runtime.steps.code import CodeLoader, CodeUnavailable
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.functions import StepOutput
from kneo.settings import from_env, user_name
from kneo.spec.code import INPROCESS, RunCode
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.modules import RuleContext
from kneo.spec.reading.load import load_tree
from kneo.store import history, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.history import JournalEntry
from kneo.store.run_filter import RunFilter
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

__all__ = [
    "Began",
    "ForkRequest",
    "JournalEntry",
    "RunHost",
    "RunSnapshot",
    "Work",
    "WorkflowFailed",
    "actor",
    "no_listener",
    "run_in_background",
    "run_sync",
]

T = TypeVar("T")

Work: TypeAlias = Callable[[str, StepContext], Awaitable[StepOutput]]
"""The function of a step in this process: input text and context in, output out."""

Began: TypeAlias = Callable[[Activity, StepContext], None]
"""A listener that is called when a step begins."""

SETTLE_SECONDS = 0.2
"""The interval in which a run that another thread drives is tried again."""


class WorkflowFailed(RuntimeError):
    """A run ended without success.

    Attributes:
        run_id: The run.
        status: ``failed``, ``cancelled``, ``expired`` or ``timed_out``.
        error_type: The type of the run's error; without one, the status.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.error.message if run.error else f"The run is {run.status}.")
        self.run_id = run.id
        self.status = run.status.value
        self.error_type = run.error.type if run.error else run.status.value


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run with its finished steps, its human tasks and its recorded checkpoints, each in order."""

    run: Run
    steps: Sequence[StepRecord]
    tasks: Sequence[HumanTask]
    journal: Sequence[JournalEntry]

    @property
    def open_tasks(self) -> Sequence[HumanTask]:
        return [task for task in self.tasks if task.status in UNRESOLVED]

    @property
    def caller_metadata(self) -> Mapping[str, object]:
        """The metadata that the program passed at the start of the run."""
        metadata = self.run.metadata.get("caller_metadata")
        return metadata if isinstance(metadata, Mapping) else {}

    @property
    def session_id(self) -> str | None:
        """The session of the run."""
        session = self.run.metadata.get("session_id")
        return session if isinstance(session, str) else None

    @cached_property
    def _edits(self) -> Mapping[str, str]:
        """The outputs that reviewers edited, by the location and the attempt of the step."""
        edits = {}
        for task in self.tasks:
            if task.position == "after" and task.decision is not None and task.decision.kind is DecisionKind.EDITED:
                location = _REVIEWS.sub("", task.key.removesuffix(".after"))
                edits[_instance(location, task.attempt)] = task.decision.content or ""
        return edits

    def edited(self, path: str, last: StepRecord) -> str | None:
        """Return the text that a reviewer edited the output of a step or a container to; None where it is as it was.

        Args:
            path: The step or the container.
            last: The record of the step, or of the step that ended last in the container: one for each round of a loop.
        """
        if path == last.step_id:
            return self._edits.get(_instance(last.location, last.attempt))
        return self._edits.get("/".join(last.location.split("/")[: path.count("/") + 1]))

    def output(self, step: StepRecord) -> str | None:
        """Return the output of a step, or the text that a reviewer edited it to."""
        edited = self.edited(step.step_id, step)
        return step.output_text if edited is None else edited


_REVIEWS = re.compile(r"@[0-9]+$")
"""The number of earlier reviews, in the key of a question."""


def _instance(location: str, attempt: int) -> str:
    return f"{location}@{attempt}" if attempt else location


def no_listener(_activity: Activity, _context: StepContext) -> None:
    """Ignore a step that begins."""


class InProcessExecutor(Executor):
    """Executes steps with functions of this process, and all other steps as every executor does."""

    def __init__(self, host: RunHost) -> None:
        code, settings = CodeLoader((), ()), from_env()
        sandboxes = open_sandboxes(settings, host.store, code)
        super().__init__(code, sandboxes, services_of(settings, host.store, code, sandboxes, host.tools))
        self.host = host

    def plain(self, program: Program, activity: Activity, run_code: RunCode, environment: str | None) -> None:
        """Return nothing: ``began`` listens to every step, and the functions of this process are async."""

    async def execute(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        self.host.began(activity, context)
        implementation = program.functions[activity.ref].implementation if activity.kind == "function" else ""
        work = self.host.work.get(implementation)
        if work is None:
            if implementation.startswith(INPROCESS):
                raise self._missing(activity, context)
            return await super().execute(program, activity, text, context, conversation)
        try:
            # A context variable of this step's own asyncio task.
            with in_step(context, self.host.store) as step:
                async with asyncio.timeout(activity.timeout_seconds):
                    output = await work(text, context)
                if step.waits_for is not None:  # of a thread that the step did not join
                    raise step.waits_for
                return replace(output, facts={**output.facts, "code": {"digest": None, "source": "program"}})
        except (asyncio.CancelledError, TimeoutError):
            context.token.cancel()
            raise

    def _missing(self, activity: Activity, context: StepContext) -> CodeUnavailable:
        msg = f"The run {context.run_id} continues with the step {activity.path}, which this program does not have."
        hint = (
            f"Steps of this program: {', '.join(self.host.steps)[:500] or 'none'}. Build the workflow with a step of that name at "
            "that place, and continue the run. What it did and what people answered is kept."
        )
        return CodeUnavailable(msg, code="step_missing", hint=hint, run_id=context.run_id, step=activity.path)


@dataclass(frozen=True)
class RunHost:
    """One database, and the step functions of one program.

    Attributes:
        database: The database of the runs.
        work: Step functions by the implementation that the spec names.
        steps: The paths of those steps, for messages.
        tools: The tools of its agents.
        began: Called when a step begins.
    """

    database: RunDatabase
    work: Mapping[str, Work]
    tools: ToolRegistry = field(default_factory=ToolRegistry)
    began: Began = no_listener
    steps: Sequence[str] = ()

    @property
    def store(self) -> Store:
        return self.database.store

    def start(
        self, tree: Mapping[str, object], text: str, metadata: Mapping[str, object], *, session_id: str | None = None
    ) -> Run:
        """Record a run, without executing it.

        Raises:
            Invalid, Forbidden: the run is refused; nothing is recorded.
            Conflict: ``worker_running``: another process executes steps on this database.
        """
        origin = {"inline_spec": True, **({"session_id": session_id} if session_id else {})}
        request = StartRequest(input=text, requester=actor(), spec=tree, metadata=metadata, origin=origin)
        with worker_lock(self.store):  # a run that this process cannot continue is not recorded
            return Starter(self.store, self.check_spec, pin=None).start(request)

    async def drive(self, run_id: str) -> RunSnapshot:
        """Execute a run until it pauses for people or ends.

        Raises:
            Conflict: ``worker_running``: another process executes steps on this database, or took the lock over.
        """
        while True:
            await asyncio.to_thread(self.apply_timers)
            await self._drive(run_id)
            # Another thread may drive the run, and an answer continues it as soon as it has paused.
            await asyncio.to_thread(wait_until_settled, self.store, RunSettled(run_id), SETTLE_SECONDS)
            snapshot = await asyncio.to_thread(self.snapshot, run_id)
            if snapshot.run.status is not RunStatus.RUNNING:
                return snapshot

    async def _drive(self, run_id: str) -> None:
        driver = Driver(self.store, ProgramLoader(self.store), InProcessExecutor(self))
        holding = worker_lock(self.store)
        lock = await asyncio.to_thread(holding.__enter__)
        try:
            await driver.drive_alone(run_id, lock)
        finally:
            await asyncio.to_thread(holding.__exit__, None, None, None)

    def snapshot(self, run_id: str) -> RunSnapshot:
        """Read the state of a run.

        Raises:
            NotFound: the run does not exist.
        """
        run = find_run(self.store, run_id)
        with self.store.read() as tx:
            return RunSnapshot(
                run=run,
                steps=history.list_steps(tx, run_id),
                tasks=tasks.of_run(tx, run_id, tuple(TaskStatus)),
                journal=history.list_entries(tx, run_id),
            )

    def status(self, run_id: str) -> RunStatus:
        """Return the status of a run.

        Raises:
            NotFound: the run does not exist.
        """
        return find_run(self.store, run_id).status

    def has(self, run_id: str, workflow_name: str) -> bool:
        """Return whether a workflow has a run."""
        with self.store.read() as tx:
            run = runs.get(tx, run_id)
        return run is not None and run.workflow_name == workflow_name

    def list_runs(
        self,
        workflow_name: str,
        *,
        limit: int,
        statuses: Collection[RunStatus] = (),
        session_id: str | None = None,
        newest: bool = True,
    ) -> Sequence[str]:
        """List the ids of the newest or the oldest runs of a workflow, in that order."""
        where = RunFilter(workflow_name=workflow_name, statuses=statuses, session_id=session_id)
        with self.store.read() as tx:
            rows = runs.list_runs(tx, where, sort_by="created_at", descending=newest, limit=limit)
        return [run.id for run in rows]

    def list_trace(self, run_id: str, after: int = 0) -> Sequence[TraceEvent]:
        """List the trace events of a run after one with a sequence number."""
        with self.store.read() as tx:
            return history.list_trace(tx, run_id, after=after)

    def listen(self, run_id: str, receive: Callable[[ModelDelta], None]) -> contextlib.AbstractContextManager[None]:
        """Receive what models of a run write, until the block ends."""
        return self.store.deltas.listen(run_id, receive)

    def cancel(self, run_id: str) -> None:
        """Cancel a run and withdraw its questions; a run that has ended stays as it is."""
        cancel_run(self.store, run_id, actor=actor())

    def find(self, run_id: str, workflow_name: str) -> RunSnapshot:
        """Read the state of a run of one workflow.

        Raises:
            NotFound: the workflow has no such run.
        """
        snapshot = self.snapshot(run_id)
        if snapshot.run.workflow_name != workflow_name:
            msg = f"The run {run_id} belongs to the workflow {snapshot.run.workflow_name}, not to {workflow_name}."
            raise NotFound(msg, hint="Read and continue it with the program that builds that workflow.")
        return snapshot

    def record(self, run_id: str, location: str, name: str, value: str) -> None:
        """Record a value with a run, at the location of a step or at none; an earlier one of the name is replaced."""
        digest = digest_of(value.encode())
        self.store.transact(
            lambda tx: history.record_entry(tx, run_id, location, name, input_digest=digest, value=value)
        )

    def decide(self, task: HumanTask, answer: DecisionRequest) -> HumanTask:
        """Record an answer to a human task.

        Raises:
            Conflict, DecisionNotAllowed: the answer does not fit, or the task is decided; nothing is recorded.
        """
        return decide(self.store, task.id, answer, actor=actor())

    def fork(self, request: ForkRequest, before: str | None) -> str:
        """Record a run that repeats another run; return its id.

        Args:
            request: The run to repeat, and the step to begin at: what earlier steps recorded is kept.
            before: A checkpoint by name, or by name and number (``draft``, ``draft:2``): the results of earlier
                checkpoints are kept too. None keeps none of the step to begin at.

        Raises:
            NotFound, Conflict, Forbidden: the run, the step or the checkpoint does not exist, or the run is refused.
        """
        recorded = self.snapshot(request.run_id).journal
        kept = set(_checkpoints_before(request.run_id, recorded, before) if before is not None else ())

        def keep(tx: Tx, run: Run) -> None:
            done = {step.location for step in history.list_steps(tx, run.id)}
            entries = [each for each in recorded if each in kept or each.location in done or not each.location]
            history.copy_entries(tx, entries, run.id)

        starter = Starter(self.store, self.check_spec, pin=None)
        request = replace(request, requester=actor())
        programs = ProgramLoader(self.store)
        return fork(starter, programs, request, keep).id

    def check_spec(self, tree: Mapping[str, object]) -> Spec:
        """Check a spec that a program built, by the rules for every spec.

        Raises:
            Invalid: ``spec_invalid``; the diagnostics are in its details.
        """
        context = RuleContext(tools=self.tools.names, middleware=self.tools.middleware_names)
        loaded = load_tree(dict(tree), rules=check, context=context)
        if loaded.spec is None or not loaded.valid:
            errors = [f"{item.code}: {item.message}" for item in loaded.diagnostics if item.is_error]
            diagnostics = [item.as_json() for item in loaded.diagnostics]
            raise Invalid("; ".join(errors[:3]), code="spec_invalid", diagnostics=diagnostics)
        return loaded.spec

    def apply_timers(self) -> None:
        """Apply deadlines that have passed while no process was running."""
        tick(self.store)


def _checkpoints_before(run_id: str, recorded: Sequence[JournalEntry], before: str) -> Sequence[JournalEntry]:
    anchor = next((entry for entry in recorded if before in {entry.name, entry.name.rpartition(":")[0]}), None)
    if anchor is None:
        names = ", ".join(entry.name for entry in recorded if not entry.name.endswith(INSIDE)) or "none"
        msg = f"The run {run_id} has no checkpoint {before[:80]}. Recorded checkpoints: {names}."
        raise NotFound(msg, code="checkpoint_not_found", hint="Leave from_ out to replay from the beginning.")
    return [entry for entry in recorded if entry.sequence < anchor.sequence]


def actor() -> str:
    """Return the name of the operating system's user."""
    return user_name()


def run_sync(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end, with or without a running event loop in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return run_in_background(work).result()


def run_in_background(work: Coroutine[object, object, T]) -> Future[T]:
    """Run a coroutine in a daemon thread: a program that ends does not wait for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again by ``Future.result``
            future.set_exception(error)

    threading.Thread(target=run, name="kneo-sdk", daemon=True).start()
    return future
