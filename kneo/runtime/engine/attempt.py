"""Attempts at steps: the context of the step, its time, its outcome, in any thread, and the deltas of its model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from kneo.agents.guardrails import PassedInput
from kneo.agents.turn import GuardrailViolation, PeopleRequired, Postponed, Stopped
from kneo.clock import Clock, isoformat
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError
from kneo.function_context import StepContext, WaitForAnswer
from kneo.records.conversation import ModelDelta
from kneo.records.run import Run, RunError, RunStatus
from kneo.redaction import redact_text
from kneo.runtime.engine.record import AttemptResult
from kneo.runtime.interpreter.gate import rejection
from kneo.runtime.interpreter.node import (
    Activity,
    AttemptOutcome,
    CallsWaiting,
    Execute,
    RunStopped,
    StepFailed,
    StepPostponed,
    StepWaiting,
    Succeeded,
)
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.functions import StepOutput
from kneo.sandbox.processes import ChildFailed
from kneo.settings import ExecutionSettings
from kneo.spec.code import RunCode
from kneo.spec.gates import positions_of
from kneo.store.change_feed import ReaderCache
from kneo.store.engine import Store
from kneo.tasks.forms import check_schema
from kneo.telemetry import span

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
        )
        self._code = code_of(run)
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
            code=self._code,
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


def code_of(run: Run) -> RunCode:
    """Return the code that a run executes: that of its bundle, and the modules that its environment pinned at the start."""
    pins, bundled = run.metadata.get("implementations", {}), run.metadata.get("code")
    known = {str(name): str(digest) for name, digest in pins.items()} if isinstance(pins, Mapping) else {}
    if not isinstance(bundled, Mapping) or run.release is None:
        return RunCode(known)
    return RunCode(known, Digest(str(bundled["digest"])), Digest(run.release.digest), bundled.get("packages") == "same")


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
        case WaitForAnswer(request=request):
            try:
                if request.schema is not None:
                    check_schema(request.schema, f"The schema of the answer to {request.prompt[:200]!r}")
            except Invalid as unusable:
                return _failed(unusable)
            return StepWaiting(request=request)
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


DEFAULT_BATCH = timedelta(milliseconds=ExecutionSettings.stream_ms)

MAX_CHARS = 65_536
"""Characters of one reply that are passed on as deltas."""

_SAFE = re.compile(r"[^\w\-+/=.:@%~]", re.ASCII)
"""Characters that are no part of a secret. Text is passed on up to the last of them: half a secret is not recognized."""


class DeltaWriter:
    """The deltas of one turn; the port ``DeltaStream`` of agents.

    Args:
        run_id: The run.
        step_id: The path of the step.
        is_read: Returns whether a client reads the deltas of the run.
        publish: Passes on a delta without waiting.
        clock: Times the batches.
        batch: The shortest time between two deltas of one reply.
    """

    def __init__(
        self,
        *,
        run_id: str,
        step_id: str,
        is_read: Callable[[], bool],
        publish: Callable[[ModelDelta], None],
        clock: Clock,
        batch: timedelta = DEFAULT_BATCH,
    ) -> None:
        self._batch = batch
        self._run_id, self._step_id = run_id, step_id
        self._is_read, self._publish = is_read, publish
        self._clock = clock
        self._request, self._text, self._published = 0, "", ""
        self._due: datetime | None = None

    def is_read(self) -> bool:
        return self._is_read()

    def write(self, request: int, offset: int, text: str) -> None:
        if offset == 0 or request != self._request:
            self._begin(request)
        if len(self._text) >= MAX_CHARS:
            return
        self._text += text
        now = self._clock.now()
        if self._due is None or now >= self._due:
            self._due = now + self._batch
            ends = [found.end() for found in _SAFE.finditer(self._text)]
            self._pass_on(self._text[: ends[-1] if ends else 0])

    def end(self, request: int) -> None:
        if request == self._request:
            self._pass_on(self._text[:MAX_CHARS])

    def _begin(self, request: int) -> None:
        self._request, self._text, self._published, self._due = request, "", "", None

    def _pass_on(self, text: str) -> None:
        """Publish what is new in a text. Where more text made a secret of what was published, nothing follows."""
        cleaned, before = redact_text(text, personal=False), self._published
        if len(cleaned) > len(before) and cleaned.startswith(before):
            self._published = cleaned
            self._publish(
                ModelDelta(
                    run_id=self._run_id,
                    step_id=self._step_id,
                    request=self._request,
                    offset=len(before),
                    text=cleaned[len(before) :],
                )
            )


async def open_deltas(
    store: Store, readers: ReaderCache, program: Program, run_id: str, activity: Activity, *, batch: timedelta
) -> DeltaWriter | None:
    """Open the deltas of an agent's step; ``None`` where there are none, or no client may read them yet."""
    if is_withheld(program, activity):
        return None
    if store.deltas.spans_processes:
        # A reader that was announced with the start of the run is known before the first request.
        with contextlib.suppress(KneoError):
            await asyncio.wrap_future(readers.refresh())
    return DeltaWriter(
        run_id=run_id,
        step_id=activity.path,
        is_read=partial(readers.is_read, run_id),
        publish=store.deltas.publish,
        clock=store.clock,
        batch=batch,
    )


def is_withheld(program: Program, activity: Activity) -> bool:
    """Return whether the text of a step must not be read before the step has ended, or there is none.

    It must not where a person reviews the output of the step, or of a group or workflow around it, and where a guardrail checks it.
    """
    agent = program.agents.get(activity.ref)
    if activity.choices:
        return True  # the name of a choice is no text for clients
    if activity.kind != "agent" or agent is None or agent.model is None or agent.model.provider == "dummy":
        return True
    if agent.guardrails is not None and (agent.guardrails.output or agent.guardrails.workflow):
        return True
    return any(
        gate.position in positions_of("result")
        and (not path or activity.path == path or activity.path.startswith(f"{path}/"))
        for (path, _, _), gate in program.gates.items()
    )
