"""Flows: functions that may wait for people, and what became of their runs."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from kneo.clock import monotonic
from kneo.errors import Conflict, NotFound
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.cancel import cancel_run
from kneo.runtime.engine.recover import ForkRequest
from kneo.runtime.engine.wait import find_run
from kneo.runtime.steps.code import INPROCESS
from kneo.runtime.steps.context import StepContext, StepOutput, WaitForAnswer
from kneo.sdk.code import call
from kneo.sdk.db import Database, scratch
from kneo.sdk.host import Host, Standing, actor, run_sync
from kneo.sdk.participants import identifier
from kneo.sdk.parts import checkpoint
from kneo.sdk.waiting import POLL_SECONDS, ask_question, current_place, hitl_tool, wait, wait_for_input
from kneo.store import history, runs
from kneo.store.run_filter import RunFilter
from kneo.tasks.decisions import decision_from_value, find_pending
from kneo.tasks.reuse import REPLAY

__all__ = [
    "Checkpoint",
    "Execution",
    "Executions",
    "Flow",
    "Wait",
    "ask_question",
    "checkpoint",
    "flow",
    "hitl_tool",
    "wait",
    "wait_for_input",
]

LOOK_SECONDS = 0.05

_STATUS = {
    RunStatus.RUNNING: "running",
    RunStatus.PAUSED: "waiting",
    RunStatus.SUCCEEDED: "completed",
    RunStatus.CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class Wait:
    """One question of an execution."""

    wait_id: str
    name: str
    question: str
    schema: Mapping[str, object] | None
    entered_waiting_at: str
    is_pending: bool
    value: object = None
    reused: bool = False
    """Whether the answer is that of the execution which was replayed."""


@dataclass(frozen=True)
class Checkpoint:
    """One part of an execution that is done: its name with its number, and what it gave."""

    name: str
    value: object


@dataclass(frozen=True)
class Execution:
    """One run of a flow, as it stood when this was read.

    Attributes:
        status: ``running``, ``waiting``, ``completed``, ``cancelled`` or ``failed``.
        result: What the flow returned.
        waits: Everything it asked, in order.
        checkpoints: The parts of it that are done, in order.
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


@dataclass
class Flow:
    """A function whose runs are kept. Where it waits nothing of it is in memory; it goes on from the top.

    Attributes:
        name: What its runs are called.
        function: What is run, sync or async; what it is given and returns has to be JSON.
        database: Where its runs are; left out: in one that ends with this process.
    """

    name: str
    function: Callable[..., object]
    database: Database | None = None
    _polls: dict[str, float] = field(default_factory=dict)

    def start(self, *args: object, **kwargs: object) -> Execution:
        """Run until it ends, or nobody has answered for as long as the question says this program should stay."""
        told = json.dumps({"args": args, "kwargs": kwargs}, ensure_ascii=False)
        host = self.host()
        run = host.start(self.spec(), told, {})
        return execution_of(run_sync(self._drive(host, run.id, poll=True)))

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run and return the result.

        Raises:
            Conflict: ``execution_waiting``: nobody has answered yet; it goes on when somebody has.
            RuntimeError: it failed.
        """
        done = self.start(*args, **kwargs)
        if done.status == "waiting":
            asked = ", ".join(each.name for each in done.pending_waits)
            msg = f"The execution {done.id} of {self.name} waits for {asked}."
            raise Conflict(msg, code="execution_waiting", execution=done.id)
        if done.status != "completed":
            msg = f"The execution {done.id} of {self.name} is {done.status}: {done.error}"
            raise RuntimeError(msg)
        return done.result

    def resume(self, execution_id: str) -> Execution:
        """Go on with an execution whose process is gone.

        Raises:
            Conflict: ``execution_waiting``: it waits for an answer.
        """
        host = self.host()
        standing = host.look(execution_id)
        if standing.run.status is RunStatus.PAUSED:
            msg = f"The execution {execution_id} waits for an answer."
            raise Conflict(msg, code="execution_waiting", hint="executions.input(id, value=…) gives it one.")
        return execution_of(run_sync(self._drive(host, execution_id, poll=False)))

    def replay(
        self,
        execution_id: str,
        *,
        from_: str | None = None,
        answers: Mapping[str, object] | None = None,
        ask: str | Sequence[str] = (),
    ) -> Execution:
        """Run again on what an execution was given; what was answered there is not asked again.

        Args:
            execution_id: The execution whose past this one has.
            from_: Where it begins: the flow; or a checkpoint, before which nothing is done again.
            answers: Other answers, by the names of their questions.
            ask: Questions to ask again, by name, or ``all``.

        Raises:
            NotFound: there is no such execution, or nothing of that name to begin at.
        """
        host = self.host()
        anchor = None if from_ in {None, "default", self.name} else from_
        order = ForkRequest(
            run_id=execution_id,
            step=self.name,
            answers=answers or {},
            ask=(ask,) if isinstance(ask, str) else tuple(ask),
        )
        run_id = host.begin_again(order, anchor)
        return execution_of(run_sync(self._drive(host, run_id, poll=False)))

    # ---- the parts --------------------------------------------------------------------------------------------

    def host(self) -> Host:
        """Return where its runs are."""
        if self.database is None:
            self.database = scratch()
        return Host(self.database, {self._implementation: self._work})

    def spec(self) -> Mapping[str, object]:
        """Return the spec that is run: one step."""
        step = {"id": self.name, "kind": "function", "ref": self.name}
        components = {"functions": {self.name: {"implementation": self._implementation}}}
        workflow = {"type": "sequential", "name": self.name, "steps": [step]}
        return {"agent": {"name": self.name}, "workflow": workflow, "components": components}

    @property
    def _implementation(self) -> str:
        return INPROCESS + identifier(self.name)

    async def _work(self, text: str, context: StepContext) -> StepOutput:
        told = json.loads(text)
        try:
            result = await call(functools.partial(self.function, **told["kwargs"]), *told["args"])
        except WaitForAnswer:
            self._polls[context.run_id] = current_place().poll_seconds
            raise
        return StepOutput(text=json.dumps(result, ensure_ascii=False))

    async def _drive(self, host: Host, run_id: str, *, poll: bool) -> Standing:
        """Drive the run, and continue it as soon as its question is answered, as long as the question says to wait.

        The worker lock is held only while steps are executed: other programs use the database while this one waits.
        """
        standing = await host.drive(run_id)
        until = monotonic() + (self._polls.get(run_id, POLL_SECONDS) if poll else 0)
        while standing.run.status is RunStatus.PAUSED and monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            now = await asyncio.to_thread(find_run, host.store, run_id)
            if now.status is RunStatus.PAUSED:
                continue
            # Another program may have answered, continued or ended it meanwhile.
            standing = await host.drive(run_id)
            until = monotonic() + self._polls.get(run_id, POLL_SECONDS)
        return standing


@overload
def flow(function: Callable[..., object]) -> Flow: ...


@overload
def flow(*, name: str | None = ..., database: Database | None = ...) -> Callable[[Callable[..., object]], Flow]: ...


def flow(
    function: Callable[..., object] | None = None, *, name: str | None = None, database: Database | None = None
) -> Flow | Callable[[Callable[..., object]], Flow]:
    """Make a flow of a function.

    Args:
        function: Where it is used without parameters.
        name: What its runs are called; left out: what the function is called.
        database: Where its runs are kept.
    """

    def decorate(wrapped: Callable[..., object]) -> Flow:
        return Flow(name or str(getattr(wrapped, "__name__", "flow")), wrapped, database)

    return decorate(function) if function is not None else decorate


@dataclass(frozen=True)
class Executions:
    """The runs of some flows that share a database.

    Attributes:
        flows: Whose runs these are; their functions go on when an answer is there.
    """

    flows: Sequence[Flow]

    def list(self, *, status: str | None = None) -> Sequence[Execution]:
        """Read executions, the latest first; ``status`` is one of an Execution's words."""
        found = []
        for each in self.flows:
            host = each.host()
            with host.store.read() as tx:
                listed = runs.list_runs(tx, RunFilter(workflow_name=each.name), limit=1000, offset=0)
            found += [execution_of(host.look(run.id)) for run in listed]
        wanted = [each for each in found if status in {None, each.status}]
        return sorted(wanted, key=lambda each: each.id, reverse=True)

    def get(self, execution_id: str) -> Execution:
        """Read one.

        Raises:
            NotFound: it is none of these flows'.
        """
        _, host = self._of(execution_id)
        return execution_of(host.look(execution_id))

    def logs(self, execution_id: str) -> Sequence[str]:
        """Tell what happened, a line each."""
        _, host = self._of(execution_id)
        with host.store.read() as tx:
            events = history.list_trace(tx, execution_id)
        return [f"{event.timestamp} {event.type} {event.step_id or ''}".rstrip() for event in events]

    def input(self, execution_id: str, *, value: object, wait: str | None = None) -> Execution:
        """Answer what an execution waits for, and go on with it.

        Args:
            execution_id: Which one.
            value: Any JSON that fits the question.
            wait: The question's name, where it asks more than one thing.

        Raises:
            Conflict: it asks nothing, or several things.
            NotAllowed: the value does not fit; it goes on waiting.
        """
        owner, host = self._of(execution_id)
        task = find_pending(execution_id, _waiting(host.look(execution_id)), wait)
        host.decide(task, decision_from_value(task, value))
        return owner.resume(execution_id)

    def abort_wait(self, execution_id: str) -> Execution:
        """End an execution that waits: it is cancelled."""
        _, host = self._of(execution_id)
        find_pending(execution_id, _waiting(host.look(execution_id))[:1], None)
        cancel_run(host.store, execution_id, actor=actor())
        return execution_of(host.look(execution_id))

    def resume(self, execution_id: str) -> Execution:
        """Go on with an execution whose process is gone.

        Raises:
            Conflict: it waits for an answer.
        """
        return self._of(execution_id)[0].resume(execution_id)

    def replay(
        self,
        execution_id: str,
        *,
        from_: str | None = None,
        answers: Mapping[str, object] | None = None,
        ask: str | Sequence[str] = (),
    ) -> Execution:
        """Run an execution again with its answers; see ``Flow.replay``."""
        return self._of(execution_id)[0].replay(execution_id, from_=from_, answers=answers, ask=ask)

    def _of(self, execution_id: str) -> tuple[Flow, Host]:
        for each in self.flows:
            host = each.host()
            with host.store.read() as tx:
                run = runs.get(tx, execution_id)
            if run is not None and run.workflow_name == each.name:
                return each, host
        msg = f"There is no execution {execution_id[:80]} of {', '.join(each.name for each in self.flows)}."
        raise NotFound(msg)


def _waiting(standing: Standing) -> Sequence[HumanTask]:
    return [task for task in standing.tasks if task.status in UNRESOLVED]


def execution_of(standing: Standing) -> Execution:
    """Tell how a run of a flow stands."""
    run = standing.run
    return Execution(
        id=run.id,
        flow=run.workflow_name,
        status=_STATUS.get(run.status, "failed"),
        result=json.loads(run.output_text) if run.output_text is not None else None,
        error=run.error.message if run.error else None,
        waits=[_wait(task) for task in standing.tasks],
        checkpoints=[Checkpoint(part.name, json.loads(part.value)) for part in standing.parts],
    )


def _wait(task: HumanTask) -> Wait:
    decision = task.decision
    value = None if decision is None else decision.data if decision.data is not None else decision.content
    return Wait(
        wait_id=task.id,
        name=task.key,
        question=task.prompt,
        schema=task.answer_schema,
        entered_waiting_at=task.created_at,
        is_pending=task.status in UNRESOLVED,
        reused=decision is not None and decision.by == REPLAY,
        value=dict(decision.values) if decision is not None and decision.values is not None else value,
    )
