"""What one transaction of a run writes. Each function is a whole: new state, step, checkpoint, trace and audit.

All take a run that the caller owns and raise ``Fenced`` when it no longer does. They return the run as it now is, or
``None`` when it has been let go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from kneo.clock import isoformat
from kneo.runtime.decide import Answered, Ask, Asked, Ended, Execute, Frame, Outcome, StepFailed, Succeeded, settle
from kneo.runtime.program import Program
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.state.run import Run, RunError, RunStatus, StepRecord
from kneo.state.task import HumanTask
from kneo.store import audit, runs
from kneo.store.engine import Tx
from kneo.tasks.inbox import cancel_tasks, mark_applied, open_task

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


def step_done(tx: Tx, program: Program, run: Run, attempt: Attempt) -> Run | None:
    """Record a step that succeeded or failed, and whatever follows from it."""
    leaf, outcome = attempt.action.leaf, attempt.outcome
    succeeded = isinstance(outcome, Succeeded)
    text = outcome.output if isinstance(outcome, Succeeded) else None
    error = outcome.error if isinstance(outcome, StepFailed) else None
    visited = (*run.visited_steps, leaf.path) if succeeded else run.visited_steps
    after = _settled(tx, program, replace(run, visited_steps=visited), leaf.path, outcome)
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
            input_text=attempt.action.input,
            output_text=text,
            error=error,
            code_digest=attempt.output.code_digest if attempt.output else None,
            started_at=attempt.started_at,
            completed_at=tx.at,
        ),
    )
    kind = "step_completed" if succeeded else "step_failed"
    facts = attempt.output.facts if attempt.output else {}
    runs.add_trace(
        tx,
        run.id,
        kind,
        step_id=leaf.path,
        input_preview=preview(attempt.action.input),
        output_preview=preview(text),
        error=asdict(error) if error else None,
        attempt=attempt.action.attempt,
        idempotency_key=attempt.context.idempotency_key,
        **facts,
    )
    _checkpoint(tx, after, kind, step_id=leaf.path, input_text=preview(attempt.action.input), output_text=preview(text))
    return _closed(tx, after)


def task_opened(tx: Tx, program: Program, run: Run, ask: Ask) -> Run | None:
    """Ask a person, and remember that the run waits for the answer."""
    gate = ask.gate
    task = open_task(tx, run, path=gate.path, step_id=gate.id, human=gate.human, subject=ask.input)
    after = _settled(tx, program, run, gate.path, Asked(task.id))
    runs.add_trace(
        tx,
        run.id,
        "human_intervention_requested",
        step_id=gate.path,
        continuation_id=task.id,
        request_id=task.request_id,
    )
    _checkpoint(tx, after, "human_pause", step_id=gate.path, continuation_id=task.id)
    return _closed(tx, after)


def decision_applied(tx: Tx, program: Program, run: Run, path: str, task: HumanTask) -> Run | None:
    """Let a recorded decision take effect, exactly once."""
    assert task.decision is not None
    mark_applied(tx, task)
    after = _settled(tx, program, replace(run, visited_steps=(*run.visited_steps, path)), path, Answered(task.decision))
    runs.add_trace(
        tx, run.id, "workflow_resumed", step_id=path, continuation_id=task.id, decision=task.decision.kind.value
    )
    _checkpoint(tx, after, "human_resume", step_id=path, continuation_id=task.id)
    return _closed(tx, after)


def paused(tx: Tx, run: Run) -> Run | None:
    """Let go of a run that waits; unless news came in meanwhile, then go on with it."""
    if runs.pause(tx, run):
        return None
    now = runs.get(tx, run.id)
    if now is None or now.epoch != run.epoch or now.status is not RunStatus.RUNNING:
        raise runs.Fenced(run.id)
    return now


def failed(tx: Tx, run: Run, error: RunError) -> None:
    """End a run that cannot go on for a reason outside its steps."""
    _finish(tx, run, Ended(RunStatus.FAILED, None, error))


# ---- shared ends ------------------------------------------------------------------------------------------------


def _settled(tx: Tx, program: Program, run: Run, path: str, outcome: Outcome) -> Run:
    """Write the new state behind the fence. The fence comes first: nothing else is written when it is gone."""
    after: Frame | Ended = settle(program, run.state, path, outcome)
    visited = {"visited_steps": list(run.visited_steps)}
    if isinstance(after, Ended):
        _finish(tx, run, after, **visited)
        return replace(run, status=after.status, output_text=after.output, error=after.error)
    runs.commit(tx, run, state=after, **visited)
    return replace(run, state=after)


def _finish(tx: Tx, run: Run, ended: Ended, **changes: object) -> None:
    runs.commit(
        tx,
        run,
        status=ended.status,
        output_text=ended.output,
        error=asdict(ended.error) if ended.error else None,
        owner=None,
        completed_at=tx.at,
        **changes,
    )
    cancel_tasks(tx, run.id, reason=f"run_{ended.status}", actor=run.requester)
    audit.record(
        tx,
        f"run.{ended.status}",
        actor=run.requester,
        run_id=run.id,
        environment=run.environment,
        metadata={"error_type": ended.error.type if ended.error else None},
    )


def _closed(tx: Tx, run: Run) -> Run | None:
    """Write the last checkpoint of a run that just ended."""
    if run.status is RunStatus.RUNNING:
        return run
    kind = "run_completed" if run.status is RunStatus.SUCCEEDED else f"run_{run.status}"
    trace = "workflow_completed" if run.status is RunStatus.SUCCEEDED else "workflow_failed"
    runs.add_trace(
        tx,
        run.id,
        trace,
        output_preview=preview(run.output_text),
        visited_steps=list(run.visited_steps),
        error=asdict(run.error) if run.error else None,
    )
    _checkpoint(tx, run, kind, output_text=preview(run.output_text))
    return None


def _checkpoint(tx: Tx, run: Run, kind: str, *, step_id: str | None = None, **facts: object) -> None:
    runs.add_checkpoint(tx, run.id, kind, step_id=step_id, state=snapshot(run, tx), metadata=facts)


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
