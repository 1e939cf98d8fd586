"""Attempts at steps: the context of the step, its time and its outcome, in any thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping

from kneo.clock import Clock, isoformat
from kneo.errors import KneoError
from kneo.records.run import Run, RunError
from kneo.runtime.engine.record import AttemptResult
from kneo.runtime.interpreter.node import Execute, StepFailed, StepWaiting, Succeeded
from kneo.runtime.steps.child_process import ChildFailed
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.context import StepContext, StepOutput, WaitForAnswer
from kneo.telemetry.spans import span

log = logging.getLogger("kneo.runtime")

MAX_ERROR_CHARS = 4_000
"""Characters of an exception's message that are kept."""


class Attempt:
    """An attempt that is under way. The caller sets ``output``; ``result`` is available when the attempt is over."""

    def __init__(self, run: Run, action: Execute, clock: Clock) -> None:
        review = action.value.review
        self.action = action
        self.context = StepContext(
            run_id=run.id,
            step_id=action.activity.path,
            attempt=action.attempt,
            idempotency_key=f"{run.id}:{action.ticket}",
            previous_output=review.previous_output if review else None,
            feedback=review.feedback if review else None,
            values=action.value.values,
            outputs=action.value.outputs,
            answers=action.answers,
            implementations=pins_of(run),
        )
        self.output: StepOutput | None = None
        self._started_at = isoformat(clock.now())
        self._outcome: StepFailed | StepWaiting | None = None

    @property
    def result(self) -> AttemptResult:
        outcome: Succeeded | StepFailed | StepWaiting | None = self._outcome
        if outcome is None:
            assert self.output is not None
            outcome = Succeeded(text=self.output.text, metadata=self.output.metadata)
        return AttemptResult(
            action=self.action,
            context=self.context,
            started_at=self._started_at,
            outcome=outcome,
            output=self.output,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Execute the step in a block. Its exceptions are the step's outcome and not errors of the caller.

        Raises:
            CodeUnavailable: the step's code is in another process.
        """
        run_id, activity = self.context.run_id, self.action.activity
        with span(
            "kneo.step", kneo_run__id=run_id, kneo_step__id=activity.path, kneo_step_kind=activity.kind
        ) as traced:
            traced.note(kneo_step_attempt=self.action.attempt)
            traced.add_input(self.action.value.text)
            try:
                yield
            except WaitForAnswer as waiting:
                self._outcome = StepWaiting(request=waiting.request)
            except CodeUnavailable:
                raise
            except TimeoutError:
                message = f"{activity.path} did not finish within {activity.timeout_seconds} s."
                self._outcome = StepFailed(error=RunError(type="step_timeout", message=message))
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # a step must not end its driver
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                log.info("step failed", extra={"run_id": run_id, "step_id": activity.path}, exc_info=True)
                self._outcome = StepFailed(error=_error(error))
            if isinstance(self._outcome, StepFailed):
                traced.failed(self._outcome.error.type)
            elif self.output is not None:
                traced.add_output(self.output.text)


def pins_of(run: Run) -> Mapping[str, str]:
    """Return the SHA-256 of the modules that the environment pinned when the run was started."""
    pins = run.metadata.get("implementations", {})
    return {str(name): str(digest) for name, digest in pins.items()} if isinstance(pins, Mapping) else {}


def _is_cancelled() -> bool:
    """Return whether this task was cancelled; a step may also raise the same exception itself."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread, which cannot be cancelled
        return False
    return task is not None and task.cancelling() > 0


def _error(error: BaseException) -> RunError:
    kind = type(error).__name__
    if isinstance(error, KneoError):
        kind = error.code
    if isinstance(error, ChildFailed):
        kind = error.kind
    return RunError(type=kind, message=(str(error) or kind)[:MAX_ERROR_CHARS])
