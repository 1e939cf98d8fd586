"""Starting runs, and trying them again: write it down, wait without holding a thread, say where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.api.requests import AsNumber, Body, Flag, Name, SkillsChange, SpecRequest, overlay_of
from kneo.api.spec_loader import SpecSelection, usable
from kneo.clock import parse_duration
from kneo.digest import digest_of_json
from kneo.errors import Invalid, InvalidValue, Usage
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, continue_run, fork
from kneo.runtime.engine.start import StartRequest, nothing
from kneo.service import responses, wire
from kneo.service.auth import require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.router import JsonResponse, Router, responds
from kneo.service.waiting import SYNC_SECONDS, begun
from kneo.store import audit
from kneo.store.engine import Tx

router = Router(tags=["runs"])

Writer = Annotated[Principal, Depends(require("runs:write"))]

MAX_SECONDS = 10 * 365 * 86_400
"""Longest time a run may be given."""

MAX_NUMBER = 2**31 - 1
"""Highest number of a checkpoint."""

MAX_WAIT = timedelta(minutes=10)

STARTED = responds(responses.RunCreated, description="It paused or ended.") | responds(
    responses.RunCreated, 202, "It goes on; look again later."
)


async def _patience(
    wait: Annotated[
        str | None,
        Query(
            pattern="^[0-9]{1,6}[smh]$",
            description="How long to wait for the run to pause or end, at most `10m`; left out: `120s`.",
            examples=["30s"],
        ),
    ] = None,
) -> timedelta:
    """Read how long to wait. A coroutine, because the framework would hop to a thread and back for anything else.

    Raises:
        Invalid: ``wait_too_long``.
    """
    if wait is None:
        return timedelta(seconds=SYNC_SECONDS)
    wanted = parse_duration(wait)
    if wanted > MAX_WAIT:
        msg = f"A request waits 10m at most, not {wait}."
        raise TooPatient(msg, hint="GET /v1/runs/{run_id}/events tells when it ends.")
    return wanted


class TooPatient(Invalid):
    http_status = 422
    default_code = "wait_too_long"


Patience = Annotated[timedelta, Depends(_patience)]


class RunCreate(SpecRequest):
    """Run a bundle that an environment serves, or, where that is allowed, a spec of your own."""

    input: str
    bundle: Name | None = Field(default=None, description="`name`, `name@version` or `sha256:…`.")
    target: Literal["agent", "workflow"] = "workflow"
    async_mode: Flag = False
    metadata: dict[str, object] = Field(default_factory=dict)
    session_id: str | None = Field(default=None, max_length=200, description="The conversation this run belongs to.")
    skills: SkillsChange | None = None
    timeout_seconds: Annotated[int, Field(gt=0, le=MAX_SECONDS), AsNumber] | None = None

    def order(self) -> SpecSelection:
        return replace(super().order(), skills=overlay_of(self.skills))


@router.post("/runs", operation_id="create_run", responses=STARTED)
async def create_run(
    body: RunCreate, service: ServiceDep, published: LegacyClient, patience: Patience, principal: Writer
) -> Response:
    """Start a run; unless `async_mode`, wait until it pauses or ends."""
    wait = timedelta(0) if body.async_mode else patience
    return await _answer(service, lambda: _start(body, service, principal), wait, published=published)


@router.post("/specs/run", operation_id="run_spec", responses=STARTED)
async def run_spec(
    body: RunCreate, service: ServiceDep, published: LegacyClient, patience: Patience, principal: Writer
) -> Response:
    """Do what `POST /v1/runs` does, under its other name."""
    wait = timedelta(0) if body.async_mode else patience
    return await _answer(service, lambda: _start_spec(body, service, principal), wait, published=published)


def _start_spec(body: RunCreate, service: Service, principal: Principal) -> Run:
    def also(tx: Tx, run: Run) -> None:
        facts = body.order().origin() | {"target": body.target, "status": run.status}
        audit.record(tx, "spec.run", actor=principal.name, run_id=run.id, environment=body.environment, metadata=facts)

    return _start(body, service, principal, also)


def _start(body: RunCreate, service: Service, principal: Principal, also: Callable[[Tx, Run], None] = nothing) -> Run:
    order = body.order()
    _check_sizes(body, service)
    origin = order.origin() | {"async_mode": body.async_mode, "session_id": body.session_id}
    if order.overrides:
        origin["overrides_digest"] = digest_of_json(order.overrides)
    asked = {
        "overrides": dict(order.overrides),
        "skills_overlay": body.skills.model_dump() if body.skills else None,
    }
    return service.starter.start(
        StartRequest(
            input=body.input,
            requester=principal.name,
            target=body.target,
            environment=body.environment,
            bundle=body.bundle,
            spec=_spec(order, body.bundle, service),
            timeout_seconds=body.timeout_seconds,
            metadata=body.metadata,
            origin=origin,
            asked=asked,
        ),
        also,
    )


def _spec(order: SpecSelection, bundle: str | None, service: Service) -> Mapping[str, object] | None:
    """Find the spec that somebody brings along or names by its path."""
    if bundle is not None:
        if order.spec_path is not None or order.has_layers:
            msg = "A bundle runs as it was approved: without a path, overlays, overrides or other skills."
            raise Usage(msg)
        return order.spec
    if order.is_plain or (order.spec is None and order.spec_path is None):
        return order.spec
    loaded = service.specs.whole(order)
    usable(loaded)
    return loaded.tree


async def _answer(service: Service, begin: Callable[[], Run], wait: timedelta, *, published: bool) -> Response:
    """Begin, then wait: many may wait at once, and a thread is too much to spend on that."""
    found = await begun(service.changes, begin, wait.total_seconds())
    answer = wire.run_created(found.run, found.task, published=published)
    return JsonResponse(answer, 202 if found.run.status is RunStatus.RUNNING else 200)


def _check_sizes(body: RunCreate, service: Service) -> None:
    limits = service.settings.limits
    service.specs.check_sizes(body.order())
    for name, size, limit in (
        ("input", len(body.input), limits.input_chars),
        ("metadata", len(json.dumps(body.metadata)), limits.metadata_bytes),
    ):
        if size > limit:
            msg = f"{name} is {size} long; at most {limit} is accepted."
            raise InvalidValue(msg, code="input_too_large", field=name, limit=limit)


@router.post("/runs/{run_id}/continue", operation_id="continue_run", responses=STARTED)
async def continue_(
    run_id: str, service: ServiceDep, published: LegacyClient, patience: Patience, principal: Writer
) -> Response:
    """Try a failed run again from where it stood, and wait until it pauses or ends."""

    def begin() -> Run:
        return continue_run(service.store, ProgramLoader(service.store), run_id, actor=principal.name)

    return await _answer(service, begin, patience, published=published)


class RunFork(Body):
    """Where in a run's past another one begins: a step or a checkpoint."""

    step: str | None = Field(default=None, description="Path of the step it begins with, `#n` for the n-th time.")
    checkpoint: Annotated[int, Field(ge=1, le=MAX_NUMBER), AsNumber] | None = Field(
        default=None, description="Or the sequence number of a checkpoint."
    )
    input: str | None = Field(
        default=None, description="What that step is given instead; gates before it are asked about it."
    )
    answers: dict[str, object] = Field(
        default_factory=dict,
        max_length=100,
        description="Answers to use instead of those given before, by the keys of their questions; needs human:write.",
    )
    ask: list[str] = Field(default_factory=list, max_length=100, description="Keys to ask anew, or `all`.")


@router.post("/runs/{run_id}/fork", operation_id="fork_run", responses=STARTED)
async def fork_run(
    run_id: str, body: RunFork, service: ServiceDep, published: LegacyClient, patience: Patience, principal: Writer
) -> Response:
    """Start another run from a point in this one's past, and wait until it pauses or ends."""
    if (body.step is None) == (body.checkpoint is None):
        msg = "Where should the other run begin?"
        raise Usage(msg, hint="Name a step or a checkpoint, one of them.")
    limit = service.settings.limits.input_chars
    if len(body.input or "") > limit:
        msg = f"input is {len(body.input or '')} long; at most {limit} is accepted."
        raise InvalidValue(msg, code="input_too_large", field="input", limit=limit)
    if body.answers:
        principal.require("human:write")
    written = len(json.dumps(body.answers, default=str))
    if written > limit:
        msg = f"answers are {written} long; at most {limit} is accepted."
        raise InvalidValue(msg, code="input_too_large", field="answers", limit=limit)
    order = ForkRequest(
        run_id=run_id,
        step=body.step,
        checkpoint=body.checkpoint,
        input=body.input,
        requester=principal.name,
        answers=body.answers,
        ask=tuple(body.ask),
    )

    def begin() -> Run:
        return fork(service.starter, ProgramLoader(service.store), order)

    return await _answer(service, begin, patience, published=published)
