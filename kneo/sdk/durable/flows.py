"""Flows: functions that may wait for people, and the executions of flows."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import overload

from kneo.clock import monotonic
from kneo.embed.answers import REPLAY, decision_from_value, find_pending
from kneo.embed.database import RunDatabase, encode_value, scratch
from kneo.embed.runs import ForkRequest, RunHost, RunSnapshot, run_in_background, run_sync
from kneo.embed.steps import INSIDE, POLL_SECONDS, StepContext, StepOutput, WaitForAnswer, active_step
from kneo.errors import Conflict, Invalid, NotFound
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.sdk.builder import SpecBuilder, call
from kneo.sdk.durable.terminal import WaitPrompt

LOOK_SECONDS = 0.05
"""The interval in which a program looks for the answer that its flow waits for."""

LIST_LIMIT = 1_000
"""The executions of one flow that a list has at most."""

_STATUS = {
    RunStatus.RUNNING: "running",
    RunStatus.PAUSED: "waiting",
    RunStatus.SUCCEEDED: "completed",
    RunStatus.CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class Wait:
    """One question of an execution; ``reused`` marks an answer taken over from a replayed execution."""

    wait_id: str
    name: str
    question: str
    schema: Mapping[str, object] | None
    entered_waiting_at: str
    is_pending: bool
    value: object = None
    reused: bool = False

    @classmethod
    def of(cls, task: HumanTask) -> Wait:
        decision = task.decision
        value: object = None
        if decision is not None:
            value = decision.content if decision.data is None else decision.data
            value = value if decision.values is None else dict(decision.values)
        return cls(
            wait_id=task.id,
            name=task.key,
            question=task.prompt,
            schema=task.answer_schema,
            entered_waiting_at=task.created_at,
            is_pending=task.status in UNRESOLVED,
            reused=decision is not None and decision.by == REPLAY,
            value=value,
        )


@dataclass(frozen=True)
class Checkpoint:
    """One finished checkpoint of an execution: its name with its number, and its result."""

    name: str
    value: object


@dataclass(frozen=True)
class Execution:
    """The state of one run of a flow.

    Attributes:
        status: ``running``, ``waiting``, ``completed``, ``cancelled`` or ``failed``.
        result: The result of the flow's function.
        waits: The questions of the execution, in order.
        checkpoints: The finished checkpoints, in order.
    """

    id: str
    flow: str | None
    status: str
    result: object
    error: str | None
    waits: Sequence[Wait]
    checkpoints: Sequence[Checkpoint] = ()

    @property
    def pending_waits(self) -> Sequence[Wait]:
        return [each for each in self.waits if each.is_pending]

    @classmethod
    def of(cls, snapshot: RunSnapshot) -> Execution:
        run = snapshot.run
        return cls(
            id=run.id,
            flow=run.workflow_name,
            status=_STATUS.get(run.status, "failed"),
            result=json.loads(run.output_text) if run.output_text is not None else None,
            error=run.error.message if run.error else None,
            waits=[Wait.of(task) for task in snapshot.tasks],
            checkpoints=[
                Checkpoint(entry.name, json.loads(entry.value))
                for entry in snapshot.journal
                if not entry.name.endswith(INSIDE)
            ],
        )


@dataclass
class Flow:
    """A function whose runs are recorded. A flow that waits holds no memory; it continues by running again.

    Attributes:
        name: The name of its runs.
        function: The function, sync or async; its arguments and its result are JSON.
        database: The database of its runs; the default is a temporary one that ends with this process.
    """

    name: str
    function: Callable[..., object]
    database: RunDatabase | None = None
    _polls: dict[str, float] = field(default_factory=dict)

    def start(self, *args: object, **kwargs: object) -> Execution:
        """Run until the end, or until a question has had no answer for as long as its timeout.

        Raises:
            Usage: ``not_json`` or ``too_large``: the arguments cannot be stored with the run.
        """
        host, run_id = self._record(args, kwargs)
        return Execution.of(run_sync(self._drive(host, run_id, poll=True)))

    def run(self, *args: object, **kwargs: object) -> FlowHandle:
        """Start an execution in a thread of this process, and return at once; ``wait`` of the handle returns the result.

        Raises:
            Usage: as ``start``.
        """
        host, run_id = self._record(args, kwargs)
        return FlowHandle(self, run_id, run_in_background(self._drive(host, run_id, poll=True)))

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run and return the result.

        Raises:
            Conflict: ``execution_waiting``: a question is open; the execution continues after its answer.
            RuntimeError: the execution failed.
        """
        return self.result_of(self.start(*args, **kwargs))

    def result_of(self, execution: Execution) -> object:
        """Return the result of an execution that completed; raises as a call of the flow does."""
        if execution.status == "waiting":
            names = ", ".join(each.name for each in execution.pending_waits)
            msg = f"The execution {execution.id} of {self.name} waits for {names}."
            raise Conflict(msg, code="execution_waiting", execution=execution.id)
        if execution.status != "completed":
            msg = f"The execution {execution.id} of {self.name} is {execution.status}: {execution.error}"
            raise RuntimeError(msg)
        return execution.result

    def resume(self, execution_id: str) -> Execution:
        """Continue an execution whose process ended.

        Raises:
            Conflict: ``execution_waiting``: a question is open.
        """
        host = self.host()
        if host.snapshot(execution_id).run.status is RunStatus.PAUSED:
            msg = f"The execution {execution_id} waits for an answer."
            raise Conflict(msg, code="execution_waiting", hint="Answer it with executions.input(id, value=…).")
        return Execution.of(run_sync(self._drive(host, execution_id, poll=False)))

    def replay(
        self,
        execution_id: str,
        *,
        from_: str | None = None,
        answers: Mapping[str, object] | None = None,
        ask: str | Sequence[str] = (),
    ) -> Execution:
        """Run again with the arguments and the answers of an execution.

        Args:
            execution_id: The execution to repeat.
            from_: A checkpoint: the results of the checkpoints before it are kept. The default, and the name of the
                flow, repeat everything.
            answers: Answers that replace recorded ones, by the name of the question.
            ask: Questions to ask again, by name, or ``all``.

        Raises:
            NotFound: the execution or the checkpoint does not exist.
        """
        host = self.host()
        request = ForkRequest(
            run_id=execution_id,
            step=self.name,
            answers=answers or {},
            ask=(ask,) if isinstance(ask, str) else tuple(ask),
        )
        run_id = host.fork(request, before=None if from_ in {None, "default", self.name} else from_)
        return Execution.of(run_sync(self._drive(host, run_id, poll=False)))

    def host(self) -> RunHost:
        """Return the database of the flow's runs, with the flow's function."""
        return self._build().host

    def spec(self) -> Mapping[str, object]:
        """Return the spec that runs: one function step."""
        return self._build().tree

    def _build(self) -> SpecBuilder:
        builder = SpecBuilder()
        step = {"id": self.name, "kind": "function", "ref": builder.function(self.name, self._work)}
        builder.finish(self.name, {"type": "sequential", "name": self.name, "steps": [step]})
        self.database = self.database or scratch()
        builder.open(self.database)
        return builder

    def _record(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> tuple[RunHost, str]:
        """Record an execution, without executing it; return its host and its id."""
        arguments = encode_value({"args": args, "kwargs": kwargs}, f"The arguments of {self.name}")
        builder = self._build()
        return builder.host, builder.host.start(builder.tree, arguments, {}).id

    async def _work(self, text: str, context: StepContext) -> StepOutput:
        arguments = json.loads(text)
        try:
            result = await call(functools.partial(self.function, **arguments["kwargs"]), *arguments["args"])
        except WaitForAnswer:
            self._polls[context.run_id] = active_step().poll_seconds
            raise
        return StepOutput(text=encode_value(result, f"The result of {self.name}"))

    async def _drive(self, host: RunHost, run_id: str, *, poll: bool) -> RunSnapshot:
        """Execute a run; poll for the answers to its questions for as long as their timeouts.

        The worker lock is held only while steps execute: other programs use the database in the meantime.
        """
        snapshot = await host.drive(run_id)
        while poll and snapshot.run.status is RunStatus.PAUSED:
            answered = await asyncio.to_thread(self._poll, host, snapshot)
            if not answered:
                break
            snapshot = await host.drive(run_id)
        return snapshot

    def _poll(self, host: RunHost, paused: RunSnapshot) -> bool:
        """Poll for an answer, from this terminal or from elsewhere; return whether there is one in time."""
        seconds = self._polls.get(paused.run.id, POLL_SECONDS)
        until = monotonic() + seconds
        with WaitPrompt(host, paused.open_tasks, seconds) as prompt:
            while monotonic() < until:
                prompt.look(LOOK_SECONDS)
                if host.status(paused.run.id) is not RunStatus.PAUSED:
                    return True  # answered, continued or ended, perhaps by another program
        return False


@dataclass(frozen=True)
class FlowHandle:
    """An execution that a thread of this process runs.

    Attributes:
        flow: Its flow.
        execution_id: Its id, for ``Executions`` and for ``kneo runs``.
    """

    flow: Flow
    execution_id: str
    _ended: Future[RunSnapshot]

    @property
    def status(self) -> str:
        """The status of the execution now."""
        return Execution.of(self.flow.host().snapshot(self.execution_id)).status

    def wait(self, timeout: float | None = None) -> object:
        """Wait for the end and return the result.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: the execution goes on after this time.
            Conflict: ``execution_waiting``: a question had no answer for as long as its timeout.
            RuntimeError: the execution failed.
        """
        return self.flow.result_of(Execution.of(self._ended.result(timeout)))


@overload
def flow(function: Callable[..., object]) -> Flow: ...


@overload
def flow(*, name: str | None = ..., database: RunDatabase | None = ...) -> Callable[[Callable[..., object]], Flow]: ...


def flow(
    function: Callable[..., object] | None = None, *, name: str | None = None, database: RunDatabase | None = None
) -> Flow | Callable[[Callable[..., object]], Flow]:
    """Make a flow of a function.

    Args:
        function: The function, when the decorator is used without parameters.
        name: The name of its runs; the default is the name of the function.
        database: The database of its runs.
    """

    def decorate(wrapped: Callable[..., object]) -> Flow:
        return Flow(name or str(getattr(wrapped, "__name__", "flow")), wrapped, database)

    return decorate(function) if function is not None else decorate


@dataclass(frozen=True)
class Executions:
    """The executions of flows that share a database.

    Attributes:
        flows: The flows, whose functions continue after an answer.
    """

    flows: Sequence[Flow]

    def list(self, *, status: str | None = None) -> Sequence[Execution]:
        """List executions, the latest first, at most ``LIST_LIMIT`` of each flow; ``status`` is a status of ``Execution``.

        Raises:
            Invalid: the status does not exist.
        """
        statuses = [each for each in RunStatus if status in {None, _STATUS.get(each, "failed")}]
        if not statuses:
            known = ", ".join(sorted({_STATUS.get(each, "failed") for each in RunStatus}))
            msg = f"{str(status)[:100]!r} is not a status of an execution; use one of: {known}."
            raise Invalid(msg)
        executions = []
        for each in self.flows:
            host = each.host()
            found = host.list_runs(each.name, statuses=statuses, limit=LIST_LIMIT)
            executions += [Execution.of(host.snapshot(run_id)) for run_id in found]
        return sorted(executions, key=lambda each: each.id, reverse=True)

    def get(self, execution_id: str) -> Execution:
        """Read an execution.

        Raises:
            NotFound: none of these flows has such an execution.
        """
        _, host = self._find(execution_id)
        return Execution.of(host.snapshot(execution_id))

    def logs(self, execution_id: str) -> Sequence[str]:
        """List the trace events of an execution, one line each."""
        _, host = self._find(execution_id)
        events = host.list_trace(execution_id)
        return [f"{event.timestamp} {event.type} {event.step_id or ''}".rstrip() for event in events]

    def input(self, execution_id: str, *, value: object, wait: str | None = None) -> Execution:
        """Answer a question of an execution, and continue it.

        Args:
            execution_id: The execution.
            value: Any JSON that fits the question.
            wait: The name of the question, when several are open.

        Raises:
            Conflict: no question is open, or several.
            DecisionNotAllowed: the value does not fit; the question stays open.
        """
        owner, host = self._find(execution_id)
        task = find_pending(execution_id, host.snapshot(execution_id).open_tasks, wait)
        host.decide(task, decision_from_value(task, value))
        return owner.resume(execution_id)

    def abort_wait(self, execution_id: str) -> Execution:
        """Cancel an execution that waits."""
        _, host = self._find(execution_id)
        find_pending(execution_id, host.snapshot(execution_id).open_tasks[:1], None)
        host.cancel(execution_id)
        return Execution.of(host.snapshot(execution_id))

    def resume(self, execution_id: str) -> Execution:
        """Continue an execution whose process ended; see ``Flow.resume``."""
        return self._find(execution_id)[0].resume(execution_id)

    def replay(
        self,
        execution_id: str,
        *,
        from_: str | None = None,
        answers: Mapping[str, object] | None = None,
        ask: str | Sequence[str] = (),
    ) -> Execution:
        """Run an execution again with its answers; see ``Flow.replay``."""
        return self._find(execution_id)[0].replay(execution_id, from_=from_, answers=answers, ask=ask)

    def _find(self, execution_id: str) -> tuple[Flow, RunHost]:
        for each in self.flows:
            host = each.host()
            if host.has(execution_id, each.name):
                return each, host
        names = ", ".join(each.name for each in self.flows)
        msg = f"The execution {execution_id[:80]} does not exist. Flows searched: {names}."
        raise NotFound(msg)


@dataclass(frozen=True, init=False)
class Client:
    """The executions of a program's flows: ``Client(flow).executions.list()``."""

    executions: Executions

    def __init__(self, *flows: Flow) -> None:
        object.__setattr__(self, "executions", Executions(flows))
