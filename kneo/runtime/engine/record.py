"""What one transaction of a run writes. Each function is a whole: new state, step, checkpoint, trace, tasks and audit.

All take a run that the caller owns and raise ``Fenced`` when it no longer does. They return the run as it now is, or
``None`` when it has been let go: it ended, or it waits for people.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from kneo.clock import isoformat
from kneo.records.run import Run, RunError, RunStatus, StepRecord, ending
from kneo.records.task import HumanTask, TaskStatus
from kneo.runtime.engine.consequences import consequences
from kneo.runtime.engine.questions import Message, case_of, question
from kneo.runtime.engine.wait import SettledRun
from kneo.runtime.interpreter.node import (
    Ask,
    DecisionContext,
    Execute,
    Frame,
    Outcome,
    RunEnded,
    Stale,
    StepFailed,
    StepWaiting,
    Succeeded,
    TaskDecided,
    TaskOpened,
)
from kneo.runtime.interpreter.program import Program, actions, settle, waiting
from kneo.runtime.steps.context import StepContext, StepOutput
from kneo.store import audit, history, runs, tasks
from kneo.store.engine import Tx
from kneo.store.history import CheckpointLimits, History, NewCheckpoint, NewTrace
from kneo.tasks.lifecycle import cancel_tasks, mark_applied
from kneo.tasks.questions import open_task
from kneo.tasks.reuse import reuse_answer, reuse_passed

PREVIEW_CHARS = 500
"""How much of an input or output a trace event shows."""


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """One try at a step: what was asked, when it began, what came back."""

    action: Execute
    context: StepContext
    started_at: str
    outcome: Succeeded | StepFailed | StepWaiting
    output: StepOutput | None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where outcomes of one program's runs are written down."""

    program: Program
    limits: CheckpointLimits


def step_done(
    tx: Tx, context: RunContext, run: Run, attempt: AttemptResult, *, busy: Collection[str] = ()
) -> Run | None:
    """Record a step that succeeded or failed, and whatever follows from it.

    ``busy`` are the tickets of steps that are still under way; the run is not let go while there are any.
    """
    activity, outcome = attempt.action.activity, attempt.outcome
    if isinstance(outcome, StepWaiting):
        return _step_waits(tx, context, run, attempt, outcome, busy)
    text = outcome.text if isinstance(outcome, Succeeded) else None
    error = asdict(outcome.error) if isinstance(outcome, StepFailed) else None
    try:
        change = _Change.of(tx, context, run, attempt.action.ticket, outcome)
    except Stale:
        return run
    kind = "step_failed" if error else "step_completed"
    shown = {"input_text": preview(attempt.action.value.text), "output_text": preview(text)}
    change.history.steps.append(
        StepRecord(
            run_id=run.id,
            sequence=0,
            step_id=activity.path,
            kind=activity.kind,
            attempt=attempt.action.attempt,
            status="failed" if error else "completed",
            idempotency_key=attempt.context.idempotency_key,
            input_text=attempt.action.value.text,
            output_text=text,
            error=outcome.error if isinstance(outcome, StepFailed) else None,
            code_digest=attempt.output.code_digest if attempt.output else None,
            started_at=attempt.started_at,
            completed_at=tx.at,
        )
    )
    change.trace(
        kind,
        activity.path,
        input_preview=shown["input_text"],
        output_preview=shown["output_text"],
        error=error,
        attempt=attempt.action.attempt,
        idempotency_key=attempt.context.idempotency_key,
        **(attempt.output.facts if attempt.output else {}),
    )
    change.checkpoint(kind, activity.path, workflow_type=run.workflow_type, error=error, **shown)
    return change.write(busy)


def _step_waits(
    tx: Tx, context: RunContext, run: Run, attempt: AttemptResult, outcome: StepWaiting, busy: Collection[str]
) -> Run | None:
    """Record that a step asks for something; it is not done, so it leaves no step behind."""
    try:
        change = _Change.of(tx, context, run, attempt.action.ticket, outcome)
    except Stale:
        return run
    change.trace("step_waiting", attempt.action.activity.path, attempt=attempt.action.attempt)
    return change.write(busy)


def questions_asked(tx: Tx, context: RunContext, run: Run, *, busy: Collection[str] = ()) -> Run | None:
    """Ask people what the run has to ask now, and let go of it when nothing else is to be done."""
    return _Change(tx, context, run, run.state).write(busy)


def answer_applied(tx: Tx, context: RunContext, run: Run, *, busy: Collection[str] = ()) -> Run | None:
    """Let the oldest decision that had no effect yet take it; without one the run is returned as it was."""
    if not waiting(context.program, run.state):
        return run
    answers = decided(tx, run)
    if not answers:
        return run
    # While there are further answers the run must not be let go of: nobody would come back for them.
    return _decision_applied(tx, context, run, answers[0], busy=(*busy, *(task.id for task in answers[1:])))


def _decision_applied(
    tx: Tx, context: RunContext, run: Run, task: HumanTask, *, busy: Collection[str] = ()
) -> Run | None:
    """Let a recorded decision take effect, exactly once."""
    assert task.decision is not None
    ask = waiting(context.program, run.state).get(task.id)
    if ask is None:
        # Nothing waits for it any more; a decision without a place has no effect.
        cancel_tasks(tx, run.id, reason="superseded", actor=run.requester, only={task.id})
        return run
    runs.lock(tx, run.id)
    mark_applied(tx, task)
    change = _Change.of(tx, context, run, ask.ticket, TaskDecided(decision=task.decision))
    if ask.gate.position == "step" and ask.recheck is None:
        change.history.steps.append(_answered_step(tx, run, ask, task))
    change.trace(
        "workflow_resumed",
        ask.path,
        continuation_id=task.id,
        decision=task.decision.kind.value,
        position=ask.gate.position,
    )
    change.checkpoint("human_resume", ask.path, continuation_id=task.id)
    return change.write(busy)


def _answered_step(tx: Tx, run: Run, ask: Ask, task: HumanTask) -> StepRecord:
    assert task.decision is not None
    return StepRecord(
        run_id=run.id,
        sequence=0,
        step_id=ask.path,
        kind="human",
        attempt=0,
        status="completed",
        idempotency_key=f"{run.id}:{ask.ticket}",
        input_text=ask.subject.text,
        output_text=task.decision.content or task.decision.selected_option,
        error=None,
        code_digest=None,
        started_at=task.created_at,
        completed_at=tx.at,
    )


def failed(tx: Tx, context: RunContext | None, run: Run, error: RunError) -> None:
    """End a run that cannot go on for a reason outside its steps."""
    _Change(tx, context, run, RunEnded(status=RunStatus.FAILED, output=None, error=error, kept=run.state)).write(())


# ---- one change -------------------------------------------------------------------------------------------------


class _Change:
    """A run's next state on its way into the database, with what it adds to the run's history."""

    def __init__(self, tx: Tx, context: RunContext | None, run: Run, after: Frame | RunEnded) -> None:
        self.tx = tx
        self.context = context
        self.history = History()
        self.before = run
        self.run = _ended(run, after) if isinstance(after, RunEnded) else replace(run, state=after)

    @classmethod
    def of(cls, tx: Tx, context: RunContext, run: Run, ticket: str, outcome: Outcome) -> _Change:
        return cls(tx, context, run, settle(context.program, run.state, ticket, outcome, decision_context(run, tx)))

    def trace(self, kind: str, step_id: str | None = None, **data: object) -> None:
        self.history.trace.append(NewTrace(type=kind, step_id=step_id, data=data))

    def checkpoint(self, kind: str, step_id: str | None = None, **facts: object) -> None:
        state = snapshot(self.run, self.tx, new_steps=len(self.history.steps))
        self.history.checkpoints.append(NewCheckpoint(type=kind, step_id=step_id, state=state, metadata=facts))

    def write(self, busy: Collection[str]) -> Run | None:
        """Ask what is to be asked, write everything behind the fence, and let go of a run that ended or only waits."""
        if self.run.status is not RunStatus.RUNNING:
            self._finish()
            return None
        assert self.context is not None
        todo = actions(self.context.program, self.run.state)
        asks = [action for action in todo if isinstance(action, Ask)]
        if asks:
            # The fence comes first: whoever has lost the run must not open questions, nor wait for the new owner's rows.
            runs.commit(self.tx, self.run)
        asked = [self._ask(ask) for ask in asks]
        self.run = history.counted(self.run, self.history)
        runs.commit(self.tx, self.run, state=self.run.state, state_version=self.run.state_version)
        self._append()
        self._withdraw()
        if busy or any(isinstance(action, Execute) for action in todo):
            return self.run
        paused = runs.pause(self.tx, self.run)
        if paused is None:
            return _still_ours(self.tx, self.run)
        self._tell(paused, asked)
        return None

    def _tell(self, paused: Run, asked: Sequence[HumanTask]) -> None:
        """Say that the run waits, and for what, unless it waits for more than was asked just now."""
        assert self.context is not None
        whole = {task.id for task in asked} == waiting(self.context.program, paused.state).keys()
        self.tx.notify(paused.id, SettledRun(paused, asked) if whole else None)

    def _append(self) -> None:
        limits = self.context.limits if self.context else CheckpointLimits()
        history.append(self.tx, self.before, self.history, limits)

    def _ask(self, ask: Ask) -> HumanTask:
        assert self.context is not None
        tx, run = self.tx, self.run
        now = decision_context(run, tx)
        # What is shown later is found anew, beside whatever was answered by then; this is what lists show.
        leads_to = consequences(self.context.program, run.state, ask, now)
        task = open_task(tx, run, question(ask, run, leads_to, self._messages))
        after = settle(self.context.program, run.state, ask.ticket, TaskOpened(task_id=task.id), now)
        assert not isinstance(after, RunEnded)
        self.run = replace(run, state=after)
        if ask.recheck is None:
            reuse_answer(tx, run, task)
        else:
            reuse_passed(tx, run, task, ask.recheck.source)
        told = {"continuation_id": task.id, "request_id": task.request_id, "position": ask.gate.position}
        self.trace("human_intervention_requested", ask.path, **told)
        self.checkpoint("human_pause", ask.path, continuation_id=task.id)
        return task

    def _messages(self) -> list[Message]:
        """List what the steps said so far, the one that is about to be written among them."""
        steps = [*history.list_steps(self.tx, self.run.id), *self.history.steps]
        return [(step.step_id, step.output_text) for step in steps if step.output_text is not None]

    def _withdraw(self) -> None:
        """Close questions that nothing waits for any more."""
        assert self.context is not None
        program = self.context.program
        gone = waiting(program, self.before.state).keys() - waiting(program, self.run.state).keys()
        if gone:
            cancel_tasks(self.tx, self.run.id, reason="superseded", actor=self.run.requester, only=gone)

    def _finish(self) -> None:
        run, tx = self.run, self.tx
        error = asdict(run.error) if run.error else None
        succeeded = run.status is RunStatus.SUCCEEDED
        told = history.visited(tx, run.id) + tuple(s.step_id for s in self.history.steps if s.status == "completed")
        self.trace(
            ending(run.status),
            output_preview=preview(run.output_text),
            visited_steps=list(told),
            error=error,
        )
        self.checkpoint("run_completed" if succeeded else f"run_{run.status}", output_text=preview(run.output_text))
        self.run = history.counted(run, self.history)
        runs.commit(
            tx,
            self.run,
            status=run.status,
            state=run.state,
            state_version=run.state_version,
            output_text=run.output_text,
            error=error,
            metadata=run.metadata,
            visited_steps=list(told),
            owner=None,
            completed_at=tx.at,
        )
        self._append()
        cancel_tasks(tx, run.id, reason=f"run_{run.status}", actor=run.requester)
        audit.record(
            tx,
            f"run.{run.status}",
            actor=run.requester,
            run_id=run.id,
            environment=run.environment,
            metadata={"error_type": run.error.type if run.error else None},
        )
        tx.notify(
            run.id, SettledRun(replace(self.run, visited_steps=told, owner=None, updated_at=tx.at, completed_at=tx.at))
        )


def _still_ours(tx: Tx, run: Run) -> Run:
    """Load a run that could not be let go of because there is news for it."""
    now = runs.get(tx, run.id)
    if now is None or now.epoch != run.epoch or now.status is not RunStatus.RUNNING:
        raise runs.Fenced(run.id)
    return now


def _ended(run: Run, ended: RunEnded) -> Run:
    metadata = {**run.metadata, "outputs": dict(ended.outputs)} if ended.outputs else run.metadata
    after = replace(run, status=ended.status, output_text=ended.output, error=ended.error, metadata=metadata)
    return replace(after, state=ended.kept or {}) if ended.status is RunStatus.FAILED else after


def decision_context(run: Run, tx: Tx) -> DecisionContext:
    return DecisionContext(now=tx.now, seed=run.id, sampling_seed=case_of(run))


def decided(tx: Tx, run: Run) -> tuple[HumanTask, ...]:
    """Find answers whose effect has not come yet."""
    return tasks.of_run(tx, run.id, [TaskStatus.DECIDED])


def snapshot(run: Run, tx: Tx, *, new_steps: int = 0) -> Mapping[str, object]:
    """What a checkpoint keeps: enough to see where the run stood and to fork from there.

    ``new_steps`` are written with it and not yet in the run's count.
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
    if text is None or len(text) <= PREVIEW_CHARS:
        return text
    return text[:PREVIEW_CHARS] + "...[truncated]"
