"""Attempts at steps: the context of the step, its time and its outcome, in any thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

from kneo.agents.guardrails import PassedInput
from kneo.agents.turn import GuardrailViolation, PeopleRequired, Postponed, Stopped
from kneo.clock import Clock, isoformat
from kneo.errors import KneoError
from kneo.records.run import Run, RunError, RunStatus
from kneo.runtime.engine.record import AttemptResult
from kneo.runtime.interpreter.gate import rejection
from kneo.runtime.interpreter.node import (
    AttemptOutcome,
    CallsWaiting,
    Execute,
    RunStopped,
    StepFailed,
    StepPostponed,
    StepWaiting,
    Succeeded,
)
from kneo.runtime.steps.child_process import ChildFailed
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.context import StepContext, StepOutput, WaitForAnswer
from kneo.telemetry.spans import span

log = logging.getLogger("kneo.runtime")

MAX_ERROR_CHARS = 4_000
"""Characters of an exception's message that are kept."""


class Attempt:
    """An attempt that is under way. The caller sets ``output``; ``result`` is available when the attempt is over.

    ``shows_input`` is false where guardrails check the input: until they have passed it on, nothing records it. ``traces`` is
    whether the spec lets spans carry the input and the output.
    """

    def __init__(
        self, run: Run, action: Execute, clock: Clock, *, shows_input: bool = True, traces: bool = True
    ) -> None:
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
            messages=action.value.messages,
            answers=action.answers,
            implementations=pins_of(run),
        )
        self.output: StepOutput | None = None
        self._shows_input, self._traces = shows_input, traces
        self._started_at = isoformat(clock.now())
        self._outcome: AttemptOutcome | None = None

    def check_input(self, passed: PassedInput | None) -> None:
        """Replace the input of a failed step, which ``on_error`` may pass on, by what its guardrails passed on.

        Args:
            passed: The input as they passed it on; ``None`` where the step failed before: then the run ends, and can be continued.
        """
        if self._shows_input or not isinstance(self._outcome, StepFailed):
            return
        if passed is None:
            self._outcome = RunStopped(error=self._outcome.error, status=RunStatus.FAILED, can_continue=True)
        elif passed.changed:
            self._outcome = replace(self._outcome, input_text=passed.text)

    @property
    def result(self) -> AttemptResult:
        outcome = self._outcome
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
            if self._shows_input and self._traces:
                traced.add_input(self.action.value.text)
            try:
                yield
            except (WaitForAnswer, PeopleRequired, Postponed, Stopped) as pause:
                self._outcome = _paused(activity.path, pause)
            except CodeUnavailable:
                raise
            except TimeoutError:
                message = f"{activity.path} did not finish within {activity.timeout_seconds} s."
                self._outcome = StepFailed(error=RunError(type="step_timeout", message=message))
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # a step must not end its driver
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                log.info("step failed", extra={"run_id": run_id, "step_id": activity.path}, exc_info=True)
                self._outcome = _failed(error)
            if isinstance(self._outcome, StepFailed):
                traced.failed(self._outcome.error.type)
            elif self.output is not None and self._traces:
                if not self._shows_input and self.output.input_text is not None:
                    traced.add_input(self.output.input_text)
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


FINAL = frozenset(
    {
        "provider_not_configured",
        "model_not_allowed",
        "model_host_denied",
        "model_unpriced",
        "model_refused",
        "model_empty_reply",
        "output_invalid",
        "max_iterations",
        "conversation_too_long",
        "agents_too_deep",
        "token_budget_exceeded",
        "budget_exceeded",
        "tool_interrupted",
        "tool_not_found",
        "middleware_not_found",
    }
)
"""Errors of agents after which a retry, which continues the same conversation, ends in the same way."""


def _failed(error: BaseException) -> StepFailed | RunStopped:
    described = _error(error)
    if isinstance(error, GuardrailViolation):
        # Not a failure of the step: on_error would pass on what was blocked, or do something else with it.
        return RunStopped(error=described, status=RunStatus.FAILED, can_continue=error.is_check_failure)
    return StepFailed(error=described, final=isinstance(error, KneoError) and described.type in FINAL)


def _paused(path: str, pause: WaitForAnswer | PeopleRequired | Postponed | Stopped) -> AttemptOutcome:
    """Return the outcome of a step that ended without a result and has not failed."""
    match pause:
        case WaitForAnswer():
            return StepWaiting(request=pause.request)
        case PeopleRequired():
            return CallsWaiting(questions=pause.questions)
        case Postponed():
            return StepPostponed(seconds=pause.seconds, reason=pause.reason[:MAX_ERROR_CHARS])
        case Stopped():
            error = rejection(f"the call of {pause.question.tool} in {path}", pause.decision)
            failed = pause.decision.effect == "fail"
            return RunStopped(error=error, status=RunStatus.FAILED if failed else RunStatus.CANCELLED)


def _error(error: BaseException) -> RunError:
    kind = type(error).__name__
    if isinstance(error, KneoError):
        kind = error.code
    if isinstance(error, ChildFailed):
        kind = error.kind
    return RunError(type=kind, message=(str(error) or kind)[:MAX_ERROR_CHARS])
