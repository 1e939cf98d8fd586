"""Transactions of a run. Each function is a whole: new state, step, checkpoint, trace, tasks and audit event.

All take a run that the caller holds the lease of, and raise ``Fenced`` when the lease is lost. They return the run as it now
is, or ``None`` when it has been released: it ended, or it waits for people.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from kneo.clock import isoformat
from kneo.function_context import StepContext
from kneo.records.conversation import ConversationEntry
from kneo.records.run import FINISHED_ENTRIES, NewTrace, Run, RunError, RunStatus, StepRecord, Suspicion, ending
from kneo.records.task import GRANTED, HumanTask, TaskStatus
from kneo.redaction import redact_start
from kneo.runtime.engine.journals import add_to_session
from kneo.runtime.engine.questions import Message, call_asked, consequences, decision_context, question
from kneo.runtime.engine.wait import SettledRun
from kneo.runtime.interpreter.node import (
    Ask,
    AttemptOutcome,
    CallsWaiting,
    Execute,
    Frame,
    Outcome,
    RunEnded,
    RunStopped,
    Stale,
    StepFailed,
    StepPostponed,
    StepWaiting,
    Succeeded,
    TaskDecided,
    TaskLapsed,
    TaskOpened,
)
from kneo.runtime.interpreter.program import Program, actions, settle, waiting
from kneo.runtime.steps.functions import StepOutput
from kneo.spec.code import RunCode
from kneo.store import agent_journal, audit, history, runs, tasks, usage
from kneo.store.engine import Tx
from kneo.store.history import CheckpointLimits, History, NewCheckpoint
from kneo.tasks.grants import answer_by_grant, is_lapsed
from kneo.tasks.lifecycle import cancel_tasks, mark_applied
from kneo.tasks.questions import open_task
from kneo.tasks.reuse import reuse_answer, reuse_passed

INTEGRITY = "policy:integrity"
"""The actor that withdraws the tasks of a run whose row was changed by something else."""

PREVIEW_CHARS = 500
"""Characters of an input or output in a trace event."""


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """The result of one attempt at a step."""

    action: Execute
    context: StepContext
    started_at: str
    outcome: AttemptOutcome
    output: StepOutput | None
    code: RunCode


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run's program, and the limits of its checkpoints."""

    program: Program
    limits: CheckpointLimits


def record_attempt(
    tx: Tx, context: RunContext, run: Run, result: AttemptResult, *, busy: Collection[str] = ()
) -> Run | None:
    """Record the result of an attempt, and the state that follows.

    ``busy`` lists the tickets of steps that are still under way: a run is not released while there are any.
    """
    action, outcome, step_context = result.action, result.outcome, result.context
    path = action.activity.path
    try:
        change = _Change.of(tx, context, run, action.ticket, outcome)
    except Stale:
        return run
    if not isinstance(outcome, Succeeded | StepFailed):
        # The step is not done: no step is recorded.
        kind, facts = _unfinished(outcome)
        change.trace(kind, path, attempt=action.attempt, **facts)
        return change.write(busy)
    text = outcome.text if isinstance(outcome, Succeeded) else None
    error = outcome.error if isinstance(outcome, StepFailed) else None
    kind = "step_failed" if error else "step_completed"
    details = asdict(error) if error else None
    given = _given(result)
    before, after = preview(given), preview(text)
    facts = _facts(result)
    step = StepRecord(
        run_id=run.id,
        sequence=0,
        step_id=path,
        kind=action.activity.kind,
        attempt=action.attempt,
        status="failed" if error else "completed",
        idempotency_key=step_context.idempotency_key,
        input_text=given,
        output_text=text,
        error=error,
        code_digest=result.output.code_digest if result.output else None,
        facts=facts,
        started_at=result.started_at,
        completed_at=tx.at,
    )
    change.history.steps.append(step)
    change.trace(
        kind,
        path,
        input_preview=before,
        output_preview=after,
        error=details,
        attempt=action.attempt,
        idempotency_key=step_context.idempotency_key,
        **facts,
    )
    change.checkpoint(kind, path, workflow_type=run.workflow_type, error=details, input_text=before, output_text=after)
    return change.write(busy)


def _facts(result: AttemptResult) -> Mapping[str, object]:
    """Return the facts of a step, with the code that it executed or could have executed."""
    output, code = result.output, result.code
    facts = output.facts if output is not None else {}
    if "code" in facts or (code.digest is None and result.action.activity.kind != "function"):
        return facts
    return {**facts, "code": code.facts(output.code_digest if output is not None else None)}


def _given(result: AttemptResult) -> str:
    """Return the input of a step for its record: as guardrails passed it on, where they check it."""
    outcome, output = result.outcome, result.output
    if isinstance(outcome, StepFailed) and outcome.input_text is not None:
        return outcome.input_text
    if output is not None and output.input_text is not None:
        return output.input_text
    return result.action.value.text


def _unfinished(
    outcome: StepWaiting | CallsWaiting | StepPostponed | RunStopped,
) -> tuple[str, Mapping[str, object]]:
    """Return the trace event of a step that is not done, and its facts."""
    match outcome:
        case StepWaiting():
            return "step_waiting", {}
        case CallsWaiting():
            return "step_waiting", {"calls": [question.key for question in outcome.questions]}
        case StepPostponed():
            return "step_postponed", {"seconds": outcome.seconds, "reason": outcome.reason}
        case RunStopped():
            return "step_stopped", {"error": asdict(outcome.error)}


def record_entries(
    tx: Tx, context: RunContext, run: Run, entries: Sequence[ConversationEntry], trace: Sequence[NewTrace]
) -> Run:
    """Write journal entries of a step that is under way, and their trace events."""
    new = History(trace=list(trace))
    # An entry that only begins is no result: the next driver begins it again.
    has_result = any(entry.status in FINISHED_ENTRIES for entry in entries)
    after = history.counted(run, new, suspicion=Suspicion.NONE if has_result else run.suspicion)
    # The fence comes first: a driver without the lease must not wait for locks on the new owner's rows.
    runs.commit(tx, after)
    agent_journal.append(tx, run.id, entries)
    after = usage.record_usage(tx, after, entries)
    runs.commit(tx, after, usage=vars(after.usage))
    history.append(tx, run, new, context.limits)
    return after


def open_questions(tx: Tx, context: RunContext, run: Run, *, busy: Collection[str] = ()) -> Run | None:
    """Open the tasks of a run's questions, and release the run when no other action is left."""
    return _Change(tx, context, run, run.state).write(busy)


def apply_decision(tx: Tx, context: RunContext, run: Run, *, busy: Collection[str] = ()) -> Run | None:
    """Apply a run's oldest recorded decision, exactly once; without one return the run unchanged."""
    asks = waiting(context.program, run.state)
    decided = decided_tasks(tx, run) if asks else ()
    if not decided:
        return run
    # The fence comes first: without the lease the run's tasks are those of another driver, or withdrawn.
    runs.lock_own(tx, run)
    task = decided[0]
    ask = asks.get(task.id)
    if ask is None:
        # The question was withdrawn; its decision has no effect.
        cancel_tasks(tx, run.id, reason="superseded", actor=run.requester, only={task.id})
        return run
    assert task.decision is not None
    decision = task.decision
    if decision.by == GRANTED and is_lapsed(tx, decision.source or ""):
        cancel_tasks(tx, run.id, reason="grant_ended", actor=decision.source or GRANTED, only={task.id})
        lapsed = _Change.of(tx, context, run, ask.ticket, TaskLapsed())
        return lapsed.write((*busy, *(other.id for other in decided[1:])))
    mark_applied(tx, task)
    change = _Change.of(tx, context, run, ask.ticket, TaskDecided(decision=decision))
    change.applied = frozenset({task.id})
    position = ask.gate.position
    if position == "step" and ask.recheck is None:
        step = StepRecord(
            run_id=run.id,
            sequence=0,
            step_id=ask.path,
            kind="human",
            attempt=0,
            status="completed",
            idempotency_key=f"{run.id}:{ask.ticket}",
            input_text=ask.subject.text,
            output_text=decision.content or decision.selected_option,
            error=None,
            code_digest=None,
            started_at=task.created_at,
            completed_at=tx.at,
        )
        change.history.steps.append(step)
    change.trace("workflow_resumed", ask.path, continuation_id=task.id, decision=decision.kind.value, position=position)
    change.checkpoint("human_resume", ask.path, continuation_id=task.id)
    # Further decisions count as busy: a released run would not be resumed for them.
    return change.write((*busy, *(other.id for other in decided[1:])))


def begin_alone(tx: Tx, run: Run) -> Run:
    """Record that a suspected run begins a step while its worker executes nothing else."""
    after = replace(run, suspicion=Suspicion.ALONE)
    runs.commit(tx, after)
    return after


def fail_run(tx: Tx, context: RunContext | None, run: Run, error: RunError) -> None:
    """End a run that cannot continue for a reason outside its steps."""
    _Change(tx, context, run, RunEnded(status=RunStatus.FAILED, output=None, error=error, kept=run.state)).write(())


def end_refused(tx: Tx, run_id: str, error: RunError) -> None:
    """Fail a run whose row was changed by something else. Names in that row prove nothing, so the audit event has none."""
    if runs.end(tx, run_id, RunStatus.FAILED, error, allowed=[RunStatus.RUNNING, RunStatus.PAUSED]):
        cancel_tasks(tx, run_id, reason=f"run_{RunStatus.FAILED}", actor=INTEGRITY)
        audit.record(tx, f"run.{RunStatus.FAILED}", actor=None, run_id=run_id, metadata={"error_type": error.type})


# ---- one change -------------------------------------------------------------------------------------------------


class _Change:
    """A run's next state and the additions to its history, until they are written."""

    def __init__(self, tx: Tx, context: RunContext | None, run: Run, after: Frame | RunEnded) -> None:
        self.tx = tx
        self.context = context
        self.history = History()
        self.applied = frozenset[str]()
        """The tasks whose decision this change applies."""
        self.before = run
        self.run = (
            _ended(run, after) if isinstance(after, RunEnded) else replace(run, state=after, suspicion=Suspicion.NONE)
        )

    @classmethod
    def of(cls, tx: Tx, context: RunContext, run: Run, ticket: str, outcome: Outcome) -> _Change:
        return cls(tx, context, run, settle(context.program, run.state, ticket, outcome, decision_context(run, tx)))

    @property
    def program(self) -> Program:
        assert self.context is not None
        return self.context.program

    def trace(self, kind: str, step_id: str | None = None, **data: object) -> None:
        self.history.trace.append(NewTrace(type=kind, step_id=step_id, data=data))

    def checkpoint(self, kind: str, step_id: str | None = None, **facts: object) -> None:
        state = snapshot(self.run, self.tx, new_steps=len(self.history.steps))
        self.history.checkpoints.append(NewCheckpoint(type=kind, step_id=step_id, state=state, metadata=facts))

    def write(self, busy: Collection[str]) -> Run | None:
        """Open the tasks of new questions, write the change behind the fence, and release a run that ended or only waits."""
        if self.run.status is not RunStatus.RUNNING:
            self._end()
            return None
        todo = actions(self.program, self.run.state)
        opened = [self._open(action) for action in todo if isinstance(action, Ask)]
        self.run = history.counted(self.run, self.history)
        # A task that was decided when it opened is applied next.
        is_decided = any(task.decision is not None for task in opened)
        goes_on = bool(busy) or is_decided or any(isinstance(action, Execute) for action in todo)
        if goes_on:
            paused = None
            runs.commit(self.tx, self.run, state=self.run.state, state_version=self.run.state_version)
        else:
            paused = runs.pause(self.tx, self.run)
        self._append()
        open_asks = waiting(self.program, self.run.state).keys()
        withdrawn = waiting(self.program, self.before.state).keys() - open_asks - self.applied
        if withdrawn:
            cancel_tasks(self.tx, self.run.id, reason="superseded", actor=self.run.requester, only=withdrawn)
        if goes_on:
            return self.run
        if paused is None:
            return signalled(self.tx, self.run)
        # The notification carries the open tasks only where all of them were opened just now.
        is_complete = {task.id for task in opened} == open_asks
        self.tx.notify(paused.id, SettledRun(paused, opened) if is_complete else None)
        return None

    def _append(self) -> None:
        limits = self.context.limits if self.context else CheckpointLimits()
        history.append(self.tx, self.before, self.history, limits)

    def _open(self, ask: Ask) -> HumanTask:
        """Open the task of a question. It is inserted behind the fence; what changes or locks other rows checks the fence first."""
        # The rules of the environment are read once for the task and for grants.
        tx, run = self.tx.remembering, self.run
        context = decision_context(run, tx)
        # Lists show these consequences; a single task is shown with those of the run's present state.
        leads_to = consequences(self.program, run.state, ask, context)
        task = open_task(tx, run, question(ask, run, leads_to, self._messages))
        after = settle(self.program, run.state, ask.ticket, TaskOpened(task_id=task.id), context)
        assert not isinstance(after, RunEnded)
        self.run = replace(run, state=after)
        if ask.recheck is None:
            task = reuse_answer(tx, run, task, of_call=ask.of_call)
        else:
            task = reuse_passed(tx, run, task, ask.recheck.source)
        task = answer_by_grant(tx, run, task, call_asked(self.program, after, ask, context))
        facts = {"continuation_id": task.id, "request_id": task.request_id, "position": ask.gate.position}
        self.trace("human_intervention_requested", ask.path, **facts)
        self.checkpoint("human_pause", ask.path, continuation_id=task.id)
        return task

    def _messages(self) -> list[Message]:
        """List the outputs of the steps, the step of this change among them."""
        steps = [*history.list_steps(self.tx, self.run.id), *self.history.steps]
        return [(step.step_id, step.output_text) for step in steps if step.output_text is not None]

    def _end(self) -> None:
        run, tx = self.run, self.tx
        error = asdict(run.error) if run.error else None
        output = preview(run.output_text)
        run = replace(run, visited_steps=history.visited(tx, run))
        after = history.counted(run, self.history)
        self.trace(ending(run.status), output_preview=output, visited_steps=list(after.visited_steps), error=error)
        kind = "run_completed" if run.status is RunStatus.SUCCEEDED else f"run_{run.status}"
        self.checkpoint(kind, output_text=output)
        times = {"updated_at": tx.at, "completed_at": tx.at}
        self.run = history.counted(run, self.history, owner=None, **times)
        runs.commit(
            tx,
            self.run,
            status=run.status,
            state=run.state,
            state_version=run.state_version,
            output_text=run.output_text,
            error=error,
            metadata=run.metadata,
            visited_steps=list(self.run.visited_steps),
            owner=None,
            completed_at=tx.at,
        )
        cancel_tasks(tx, run.id, reason=f"run_{run.status}", actor=run.requester)
        self._append()
        if run.status is RunStatus.SUCCEEDED:
            add_to_session(tx, run)
        record_end(tx, run)
        tx.notify(run.id, SettledRun(self.run))


def record_end(tx: Tx, run: Run) -> None:
    """Record in the audit log that a run has ended by itself."""
    audit.record(
        tx,
        f"run.{run.status}",
        actor=run.requester,
        run_id=run.id,
        environment=run.environment,
        metadata={"error_type": run.error.type if run.error else None},
    )


def signalled(tx: Tx, run: Run) -> Run:
    """Load a run that was neither paused nor parked because a signal arrived for it.

    Raises:
        Fenced: another driver has it, or it has ended.
    """
    now = runs.get(tx, run.id)
    if now is None or now.epoch != run.epoch or now.status is not RunStatus.RUNNING:
        raise runs.Fenced(run.id)
    return runs.check(tx, now)


def _ended(run: Run, ended: RunEnded) -> Run:
    metadata = {**run.metadata, "outputs": dict(ended.outputs)} if ended.outputs else run.metadata
    after = replace(run, status=ended.status, output_text=ended.output, error=ended.error, metadata=metadata)
    return replace(after, state=ended.kept or {}) if ended.status is RunStatus.FAILED else after


def decided_tasks(tx: Tx, run: Run) -> tuple[HumanTask, ...]:
    """Read the tasks whose decision is recorded and not applied yet."""
    return tasks.of_run(tx, run.id, [TaskStatus.DECIDED])


def snapshot(run: Run, tx: Tx, *, new_steps: int = 0) -> Mapping[str, object]:
    """Return the state of a checkpoint: enough to show the run and to fork from here.

    ``new_steps`` are written with the checkpoint and not yet in the run's count.
    """
    return {
        "status": run.status.value,
        "output_text": run.output_text,
        "error": asdict(run.error) if run.error else None,
        "state": run.state,
        "state_version": run.state_version,
        "step_count": run.step_count + new_steps,
        "at": isoformat(tx.now),
    }


def preview(text: str | None) -> str | None:
    """Return the beginning of a text. Half a secret at its end would not be recognised when the preview is shown."""
    if text is None or len(text) <= PREVIEW_CHARS:
        return text
    return redact_start(text, PREVIEW_CHARS) + "...[truncated]"
