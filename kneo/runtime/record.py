"""What one transaction of a run writes. Each function is a whole: new state, step, checkpoint, trace, tasks and audit.

All take a run that the caller owns and raise ``Fenced`` when it no longer does. They return the run as it now is, or
``None`` when it has been let go: it ended, or it waits for people.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

from kneo.clock import isoformat
from kneo.runtime.decide import (
    Answered,
    Ask,
    Asked,
    Ended,
    Execute,
    Frame,
    Moment,
    Outcome,
    Stale,
    StepFailed,
    Succeeded,
    actions,
    settle,
    waiting,
)
from kneo.runtime.program import Program
from kneo.runtime.prompts import render
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.state.run import Run, RunError, RunStatus, StepRecord
from kneo.state.task import HumanTask, TaskStatus
from kneo.store import audit, runs, tasks
from kneo.store.engine import Tx
from kneo.tasks.inbox import Question, cancel_tasks, mark_applied, open_task

PREVIEW_CHARS = 500
"""How much of an input or output a trace event shows."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a step: what was asked, when it began, what came back."""

    action: Execute
    context: StepContext
    started_at: str
    outcome: Succeeded | StepFailed
    output: StepOutput | None


def step_done(tx: Tx, program: Program, run: Run, attempt: Attempt, *, busy: Collection[str] = ()) -> Run | None:
    """Record a step that succeeded or failed, and whatever follows from it.

    ``busy`` are the tickets of steps that are still under way; the run is not let go while there are any.
    """
    leaf, outcome = attempt.action.leaf, attempt.outcome
    succeeded = isinstance(outcome, Succeeded)
    text = outcome.text if isinstance(outcome, Succeeded) else None
    error = outcome.error if isinstance(outcome, StepFailed) else None
    visited = (*run.visited_steps, leaf.path) if succeeded else run.visited_steps
    try:
        change = _Change.of(tx, program, replace(run, visited_steps=visited), attempt.action.ticket, outcome)
    except Stale:
        return run
    change.save(run)
    runs.insert_step(
        tx,
        StepRecord(
            run_id=run.id,
            sequence=runs.next_step_sequence(tx, run.id),
            step_id=leaf.path,
            kind=leaf.kind,
            attempt=attempt.action.attempt,
            status="completed" if succeeded else "failed",
            idempotency_key=attempt.context.idempotency_key,
            input_text=attempt.action.value.text,
            output_text=text,
            error=error,
            code_digest=attempt.output.code_digest if attempt.output else None,
            started_at=attempt.started_at,
            completed_at=tx.at,
        ),
    )
    kind = "step_completed" if succeeded else "step_failed"
    facts = attempt.output.facts if attempt.output else {}
    shown = {"input_text": preview(attempt.action.value.text), "output_text": preview(text)}
    runs.add_trace(
        tx,
        run.id,
        kind,
        step_id=leaf.path,
        input_preview=shown["input_text"],
        output_preview=shown["output_text"],
        error=asdict(error) if error else None,
        attempt=attempt.action.attempt,
        idempotency_key=attempt.context.idempotency_key,
        **facts,
    )
    change.checkpoint(kind, step_id=leaf.path, **shown)
    return change.close(busy)


def questions_asked(tx: Tx, program: Program, run: Run, *, busy: Collection[str] = ()) -> Run | None:
    """Ask people what the run has to ask now, and let go of it when nothing else is to be done."""
    change = _Change(tx, program, run, run.state)
    return change.close(busy)


def decision_applied(tx: Tx, program: Program, run: Run, task: HumanTask, *, busy: Collection[str] = ()) -> Run | None:
    """Let a recorded decision take effect, exactly once."""
    assert task.decision is not None
    ask = waiting(program, run.state).get(task.id)
    if ask is None:
        # Nothing waits for it any more; a decision without a place has no effect.
        cancel_tasks(tx, run.id, reason="superseded", actor=run.requester, only={task.id})
        return run
    runs.lock(tx, run.id)
    mark_applied(tx, task)
    visited = (*run.visited_steps, ask.path) if ask.gate.position == "step" else run.visited_steps
    outcome = Answered(decision=task.decision)
    change = _Change.of(tx, program, replace(run, visited_steps=visited), ask.ticket, outcome)
    change.save(run)
    runs.add_trace(
        tx,
        run.id,
        "workflow_resumed",
        step_id=ask.path,
        continuation_id=task.id,
        decision=task.decision.kind.value,
        position=ask.gate.position,
    )
    change.checkpoint("human_resume", step_id=ask.path, continuation_id=task.id)
    return change.close(busy)


def failed(tx: Tx, program: Program | None, run: Run, error: RunError) -> None:
    """End a run that cannot go on for a reason outside its steps."""
    change = _Change(tx, program, run, Ended(status=RunStatus.FAILED, output=None, error=error))
    change.save(run)
    change.close(())


# ---- one change -------------------------------------------------------------------------------------------------


class _Change:
    """A run's next state on its way into the database."""

    def __init__(self, tx: Tx, program: Program | None, run: Run, after: Frame | Ended) -> None:
        self.tx = tx
        self.program = program
        self.after = after
        self.run = run if not isinstance(after, Ended) else _ended(run, after)
        if not isinstance(after, Ended):
            self.run = replace(run, state=after)

    @classmethod
    def of(cls, tx: Tx, program: Program, run: Run, ticket: str, outcome: Outcome) -> _Change:
        return cls(tx, program, run, settle(program, run.state, ticket, outcome, moment(run, tx)))

    def save(self, before: Run) -> None:
        """Write the new state behind the fence, which comes first: nothing else is written when it is gone."""
        run, tx = self.run, self.tx
        visited = {"visited_steps": list(run.visited_steps)} if run.visited_steps != before.visited_steps else {}
        if isinstance(self.after, Ended):
            self._finish(visited)
            return
        runs.commit(tx, run, state=run.state, state_version=run.state_version, **visited)
        self._withdraw(before)

    def _withdraw(self, before: Run) -> None:
        """Close questions that nothing waits for any more."""
        assert self.program is not None
        gone = waiting(self.program, before.state).keys() - waiting(self.program, self.run.state).keys()
        if gone:
            cancel_tasks(self.tx, self.run.id, reason="superseded", actor=self.run.requester, only=gone)

    def _finish(self, visited: Mapping[str, object]) -> None:
        run, tx = self.run, self.tx
        runs.commit(
            tx,
            run,
            status=run.status,
            output_text=run.output_text,
            error=asdict(run.error) if run.error else None,
            metadata=run.metadata,
            owner=None,
            completed_at=tx.at,
            **visited,
        )
        cancel_tasks(tx, run.id, reason=f"run_{run.status}", actor=run.requester)
        audit.record(
            tx,
            f"run.{run.status}",
            actor=run.requester,
            run_id=run.id,
            environment=run.environment,
            metadata={"error_type": run.error.type if run.error else None},
        )

    def checkpoint(self, kind: str, *, step_id: str | None = None, **facts: object) -> None:
        state = snapshot(self.run, self.tx)
        runs.add_checkpoint(self.tx, self.run.id, kind, step_id=step_id, state=state, metadata=facts)

    def close(self, busy: Collection[str]) -> Run | None:
        """Ask what is to be asked, and let go of a run that has ended or only waits."""
        run, tx = self.run, self.tx
        if run.status is not RunStatus.RUNNING:
            self._farewell()
            return None
        assert self.program is not None
        todo = actions(self.program, run.state)
        asks = [action for action in todo if isinstance(action, Ask)]
        for ask in asks:
            self._ask(ask)
        if asks:
            run = self.run
            runs.commit(tx, run, state=run.state)
        if busy or any(isinstance(action, Execute) for action in todo):
            return self.run
        if runs.pause(tx, self.run):
            return None
        now = runs.get(tx, run.id)
        if now is None or now.epoch != run.epoch or now.status is not RunStatus.RUNNING:
            raise runs.Fenced(run.id)
        return now

    def _ask(self, ask: Ask) -> None:
        assert self.program is not None
        tx, run = self.tx, self.run
        task = open_task(tx, run, _question(ask, run))
        after = settle(self.program, run.state, ask.ticket, Asked(task_id=task.id), moment(run, tx))
        assert not isinstance(after, Ended)
        self.run = replace(run, state=after)
        runs.add_trace(
            tx,
            run.id,
            "human_intervention_requested",
            step_id=ask.path,
            continuation_id=task.id,
            request_id=task.request_id,
            position=ask.gate.position,
        )
        self.checkpoint("human_pause", step_id=ask.path, continuation_id=task.id)

    def _farewell(self) -> None:
        """Write the last checkpoint of a run that just ended."""
        run = self.run
        succeeded = run.status is RunStatus.SUCCEEDED
        runs.add_trace(
            self.tx,
            run.id,
            "workflow_completed" if succeeded else "workflow_failed",
            output_preview=preview(run.output_text),
            visited_steps=list(run.visited_steps),
            error=asdict(run.error) if run.error else None,
        )
        kind = "run_completed" if succeeded else f"run_{run.status}"
        self.checkpoint(kind, output_text=preview(run.output_text))


def _ended(run: Run, ended: Ended) -> Run:
    metadata = {**run.metadata, "outputs": dict(ended.outputs)} if ended.outputs else run.metadata
    return replace(run, status=ended.status, output_text=ended.output, error=ended.error, metadata=metadata)


def _question(ask: Ask, run: Run) -> Question:
    gate, human = ask.gate, ask.gate.human
    template = human.prompt or human.description
    names = {
        "input": ask.subject.text,
        "output": ask.subject.text,
        "previous.output": ask.subject.text,
        "run.id": run.id,
        "run.input": run.input_text,
        "run.requester": run.requester,
        "step.id": ask.step_id,
        **{name: str(value) for name, value in ask.facts.items() if isinstance(value, str | int)},
        **{f"variables.{name}": value for name, value in ask.subject.variables.items()},
    }
    return Question(
        key=ask.key,
        path=ask.path,
        step_id=ask.step_id,
        position=gate.position,
        human=human,
        subject=ask.subject.text,
        decisions=gate.decisions,
        on_reject=gate.on_reject,
        kind=KINDS[gate.position],
        prompt=render(template, names) if template else None,
        options=ask.options,
        facts=ask.facts,
    )


KINDS = {
    "step": "approval",
    "before": "approval",
    "after": "review",
    "each": "review",
    "route": "selection",
    "error": "error",
}
"""What a task is called where its human does not say it."""


def moment(run: Run, tx: Tx) -> Moment:
    return Moment(now=tx.now, seed=run.id)


def decided(tx: Tx, run: Run) -> tuple[HumanTask, ...]:
    """Find answers whose effect has not come yet."""
    return tasks.of_run(tx, run.id, [TaskStatus.DECIDED])


def snapshot(run: Run, tx: Tx) -> Mapping[str, object]:
    """What a checkpoint keeps: enough to see where the run stood and to fork from there."""
    return {
        "status": run.status.value,
        "visited_steps": list(run.visited_steps),
        "output_text": run.output_text,
        "error": asdict(run.error) if run.error else None,
        "state": run.state,
        "state_version": run.state_version,
        "at": isoformat(tx.now),
    }


def preview(text: str | None) -> str | None:
    if text is None or len(text) <= PREVIEW_CHARS:
        return text
    return text[:PREVIEW_CHARS] + "...[truncated]"
