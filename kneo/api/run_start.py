"""Operations that change runs: start, continue, fork and cancel them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from kneo.api.operation import (
    DEFAULT_WAIT,
    AsNumber,
    Body,
    Context,
    Flag,
    Name,
    Waiting,
    check_size,
    operation,
    run_operation,
)
from kneo.api.run_views import RunStartedView, RunView
from kneo.api.spec_loader import SkillsChange, SpecLoader, SpecRequest, usable
from kneo.api.subjects import ENVIRONMENT, RUN
from kneo.clock import parse_duration
from kneo.digest import digest_of_json
from kneo.errors import Invalid, Usage
from kneo.records.run import Run
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest
from kneo.runtime.engine.recover import cancel_run as cancel
from kneo.runtime.engine.recover import continue_run as continue_failed_run
from kneo.runtime.engine.recover import fork as fork_from
from kneo.runtime.engine.start import StartRequest, no_extra_writes
from kneo.runtime.engine.wait import RunSettled, SettledRun, find_run
from kneo.store import audit, idempotency
from kneo.store.change_feed import announce_reader
from kneo.store.engine import Store, Tx

MAX_SECONDS = 10 * 365 * 86_400
"""The longest timeout of a run."""

MAX_NUMBER = 2**31 - 1
"""The highest number of a checkpoint."""

MAX_WAIT = timedelta(minutes=10)

Wait = Annotated[
    str | None,
    Field(
        pattern="^[0-9]{1,6}[smh]$",
        description="How long to wait for the run to pause or end, at most `10m`; left out: `120s`.",
        examples=["30s"],
    ),
]


class WaitTooLong(Invalid):
    """A request asks to wait longer than the service allows."""

    http_status = 422
    default_code = "wait_too_long"


class RunCreate(SpecRequest):
    """Run a bundle that an environment serves, or, where that is allowed, a spec of your own."""

    input: str
    bundle: Name | None = Field(default=None, description="`name`, `name@version` or `sha256:…`.")
    target: Literal["agent", "workflow"] = "workflow"
    async_mode: Flag = False
    stream: Flag = Field(
        default=False, description="Stream replies of models from the first one, for the events of `deltas=1`."
    )
    metadata: dict[str, object] = Field(default_factory=dict)
    session_id: str | None = Field(default=None, max_length=200, description="The session of the run.")
    skills: SkillsChange | None = None
    timeout_seconds: Annotated[int, Field(gt=0, le=MAX_SECONDS), AsNumber] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the spec runs as it is sent, or as approved."""
        return not self.has_layers and (self.skills or SkillsChange()) == SkillsChange()


class RunFork(Body):
    """The point of a run's past at which the new run begins: a step or a checkpoint."""

    step: str | None = Field(
        default=None, description="Path of the first step of the new run, `#n` for its n-th iteration."
    )
    checkpoint: Annotated[int, Field(ge=1, le=MAX_NUMBER), AsNumber] | None = Field(
        default=None, description="Or the sequence number of a checkpoint."
    )
    input: str | None = Field(default=None, description="Another input of that step; gates before it are asked again.")
    answers: dict[str, object] = Field(
        default_factory=dict,
        max_length=100,
        description="Answers that replace the earlier ones, by the keys of their questions; needs human:write.",
    )
    ask: list[str] = Field(
        default_factory=list, max_length=100, description="Keys of questions to ask again, or `all`."
    )


def wait_for_run(store: Store, begin: Callable[[], Run], seconds: float) -> Waiting[RunStartedView]:
    """Start work on a run, unless an earlier execution of the same request has done so; then wait for that run."""
    run_id = idempotency.made()
    run = begin() if run_id is None else find_run(store, run_id)
    return Waiting(RunSettled(run.id, epoch=run.epoch), RunStartedView.of, seconds, SettledRun(run))


@run_operation("POST", "/runs", scope="runs:write", errors=(404,), key_scope="runs:create", about=ENVIRONMENT)
def create_run(context: Context, body: RunCreate, wait: Wait = None) -> Waiting[RunStartedView]:
    """Start a run; unless `async_mode`, wait until it pauses or ends."""
    return _start(context, body, wait)


@run_operation("POST", "/specs/run", scope="runs:write", errors=(404,), key_scope="specs:run", about=ENVIRONMENT)
def run_spec(context: Context, body: RunCreate, wait: Wait = None) -> Waiting[RunStartedView]:
    """Start a run; the older name of `POST /v1/runs`."""

    def also(tx: Tx, run: Run) -> None:
        facts = body.origin() | {"target": body.target, "status": run.status}
        audit.record(tx, "spec.run", actor=context.actor, run_id=run.id, environment=body.environment, metadata=facts)

    return _start(context, body, wait, also)


def _start(
    context: Context, body: RunCreate, wait: str | None, also: Callable[[Tx, Run], None] = no_extra_writes
) -> Waiting[RunStartedView]:
    seconds = seconds_of(wait)

    def with_reader(tx: Tx, run: Run) -> None:
        also(tx, run)
        if body.stream:
            announce_reader(tx, run.id)

    def begin() -> Run:
        return context.make_starter().start(_order(context, body), with_reader)

    return wait_for_run(context.store, begin, 0 if body.async_mode else seconds)


def _order(context: Context, body: RunCreate) -> StartRequest:
    if context.over_http:
        _check_sizes(context, body)
    origin = body.origin() | {"async_mode": body.async_mode, "session_id": body.session_id}
    if body.overrides:
        origin["overrides_digest"] = digest_of_json(body.overrides)
    return StartRequest(
        input=body.input,
        requester=context.actor,
        target=body.target,
        environment=body.environment,
        bundle=body.bundle,
        spec=_spec(context, body),
        timeout_seconds=body.timeout_seconds,
        metadata=body.metadata,
        origin=origin,
        content={
            "overrides": body.overrides,
            "skills_overlay": body.skills.model_dump() if body.skills else None,
        },
    )


def _spec(context: Context, body: RunCreate) -> Mapping[str, object] | None:
    """Return the spec of a request, inline or by path."""
    if body.bundle is not None:
        if body.spec_path is not None or not body.is_plain:
            msg = "A bundle runs as approved: a path, overlays, overrides and skills are not allowed."
            raise Usage(msg)
        return body.spec
    if body.spec is None and body.spec_path is None:
        return None
    if body.spec is not None and body.is_plain:
        return body.spec
    loaded = SpecLoader(context.settings, context.tools).whole(body, body.skills)
    usable(loaded)
    return loaded.tree


def _check_sizes(context: Context, body: RunCreate) -> None:
    SpecLoader(context.settings).check_sizes(body)
    limits = context.settings.limits
    check_size("input", len(body.input), limits.input_chars)
    check_size("metadata", len(json.dumps(body.metadata)), limits.metadata_bytes)


def seconds_of(wait: str | None, default: float = DEFAULT_WAIT) -> float:
    """Return how long to wait for a run.

    Raises:
        WaitTooLong: it is more than ``MAX_WAIT``.
    """
    if wait is None:
        return default
    duration = parse_duration(wait)
    if duration > MAX_WAIT:
        msg = f"A request waits 10m at most, not {wait}."
        raise WaitTooLong(msg, hint="GET /v1/runs/{run_id}/events reports when it ends.")
    return duration.total_seconds()


@run_operation("POST", "/runs/{run_id}/continue", scope="runs:write", key_scope="runs:continue", about=RUN)
def continue_run(context: Context, run_id: str, wait: Wait = None) -> Waiting[RunStartedView]:
    """Retry a failed run from the step that failed, and wait until it pauses or ends."""
    store, seconds = context.store, seconds_of(wait)
    programs = ProgramLoader(store, context.settings.trust_root)
    return wait_for_run(store, lambda: continue_failed_run(store, programs, run_id, actor=context.actor), seconds)


@run_operation("POST", "/runs/{run_id}/fork", scope="runs:write", about=RUN)
def fork_run(context: Context, run_id: str, body: RunFork, wait: Wait = None) -> Waiting[RunStartedView]:
    """Start a new run from a point in this run's past, and wait until it pauses or ends."""
    seconds = seconds_of(wait)
    if (body.step is None) == (body.checkpoint is None):
        msg = "The request names no point, or two, at which the new run begins."
        raise Usage(msg, hint="Pass either a step or a checkpoint.")
    if body.answers:
        context.principal.require("human:write")
    if context.over_http:
        limit = context.settings.limits.input_chars
        check_size("input", len(body.input or ""), limit)
        check_size("answers", len(json.dumps(body.answers, default=str)), limit)
    order = ForkRequest(
        run_id=run_id,
        step=body.step,
        checkpoint=body.checkpoint,
        input=body.input,
        requester=context.actor,
        answers=body.answers,
        ask=tuple(body.ask),
    )
    programs = ProgramLoader(context.store, context.settings.trust_root)
    return wait_for_run(context.store, lambda: fork_from(context.make_starter(), programs, order), seconds)


@operation("POST", "/runs/{run_id}/cancel", scope="runs:write", about=RUN)
def cancel_run(context: Context, run_id: str) -> RunView:
    """End a run now. Its open questions are withdrawn; steps in progress are not committed."""
    return RunView.of(cancel(context.store, run_id, actor=context.actor), None)
