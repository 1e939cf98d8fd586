"""Runs: start, look, cancel."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kneo.errors import Invalid
from kneo.runtime import views
from kneo.runtime.cancel import cancel_run
from kneo.runtime.load import ProgramLoader
from kneo.runtime.recover import ForkOrder, continue_run, fork, read_record
from kneo.runtime.start import RunOrder
from kneo.runtime.wait import find_run, wait_until_settled
from kneo.service import wire
from kneo.service.auth import Principal, require
from kneo.service.context import Here, Published, Service
from kneo.service.spec_files import read_spec_file
from kneo.service.wire import Json
from kneo.service.words import parse_status, say
from kneo.state.run import Run, RunStatus
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store import runs, tasks
from kneo.store.run_filter import RunFilter

router = APIRouter(tags=["runs"])

SYNC_SECONDS = 120.0
"""How long a synchronous request waits before it answers that the run goes on."""

Reader = Annotated[Principal, Depends(require("runs:read"))]
Writer = Annotated[Principal, Depends(require("runs:write"))]


class RunCreate(BaseModel):
    """Run a bundle that an environment serves, or, where that is allowed, a spec of your own."""

    model_config = ConfigDict(extra="forbid")

    input: str
    bundle: str | None = Field(default=None, description="`name`, `name@version` or `sha256:…`.")
    environment: str | None = None
    spec_path: str | None = None
    spec: dict[str, object] | None = None
    target: Literal["agent", "workflow"] = "workflow"
    async_mode: bool = False
    metadata: dict[str, object] = Field(default_factory=dict)
    timeout_seconds: int | None = Field(default=None, gt=0)


@router.post("/runs", operation_id="create_run")
def create_run(body: RunCreate, response: Response, service: Here, published: Published, principal: Writer) -> Json:
    """Start a run; unless `async_mode`, wait until it pauses or ends."""
    _check_sizes(body, service)
    spec = body.spec
    if spec is None and body.spec_path is not None:
        spec = read_spec_file(service.settings, body.spec_path)
    order = RunOrder(
        input=body.input,
        requester=principal.name,
        target=body.target,
        environment=body.environment,
        bundle=body.bundle,
        spec=spec,
        timeout_seconds=body.timeout_seconds,
        metadata=body.metadata,
        origin={"spec_path": body.spec_path, "inline_spec": body.spec is not None, "async_mode": body.async_mode},
    )
    run = service.starter.start(order)
    service.poke()
    if not body.async_mode:
        run = wait_until_settled(service.store, run.id, SYNC_SECONDS)
    if run.status is RunStatus.RUNNING:
        response.status_code = 202
    return wire.run_created(run, open_task(service, run), published=published)


def _check_sizes(body: RunCreate, service: Service) -> None:
    limits = service.settings.limits
    sizes = (
        ("input", len(body.input), limits.input_chars),
        ("spec", len(json.dumps(body.spec)) if body.spec else 0, limits.inline_spec_bytes),
        ("metadata", len(json.dumps(body.metadata)), limits.metadata_bytes),
        ("spec_path", len(body.spec_path or ""), limits.path_chars),
    )
    for name, size, limit in sizes:
        if size > limit:
            msg = f"{name} is {size} long; at most {limit} is accepted."
            raise Invalid(msg, code="input_too_large", field=name, limit=limit)


def open_task(service: Service, run: Run) -> HumanTask | None:
    """Find what a paused run asks."""
    if run.status is not RunStatus.PAUSED:
        return None
    with service.store.read() as tx:
        found = tasks.of_run(tx, run.id, UNRESOLVED)
    return found[0] if found else None


@router.get("/runs", operation_id="list_runs")
def list_runs(
    service: Here,
    published: Published,
    _principal: Reader,
    status: str | None = None,
    environment: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    sort_by: str = "updated_at",
    sort_order: Literal["asc", "desc"] = "desc",
) -> Json:
    """List runs, the most recently changed first."""
    wanted = parse_status(status) if status is not None else None
    if status is not None and wanted is None:
        return wire.page("runs", [], total=0, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)
    with service.store.read() as tx:
        where = RunFilter(status=wanted, environment=environment)
        found = runs.list_runs(
            tx,
            where,
            sort_by=sort_by,
            descending=sort_order == "desc",
            limit=limit,
            offset=offset,
        )
        total = runs.count_runs(tx, where)
        asked = {run.id: next(iter(tasks.of_run(tx, run.id, UNRESOLVED)), None) for run in found if _waits(run)}
    items = [wire.run_status(run, asked.get(run.id), 0, published=published) for run in found]
    return wire.page("runs", items, total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)


def _waits(run: Run) -> bool:
    return run.status is RunStatus.PAUSED


@router.get("/runs/{run_id}", operation_id="get_run")
def get_run(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read one run."""
    return _status(service, find_run(service.store, run_id), published=published)


def _status(service: Service, run: Run, *, published: bool) -> Json:
    with service.store.read() as tx:
        events = runs.count_trace(tx, run.id)
    return wire.run_status(run, open_task(service, run), events, published=published)


@router.get("/runs/{run_id}/trace", operation_id="get_run_trace")
def get_run_trace(
    run_id: str,
    service: Here,
    _principal: Reader,
    event_type: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> Json:
    """Read what happened in a run, step by step."""
    find_run(service.store, run_id)
    with service.store.read() as tx:
        events = runs.list_trace(tx, run_id, event_type=event_type, limit=limit, offset=offset)
        total = runs.count_trace(tx, run_id, event_type=event_type)
    answer = wire.page(
        "events",
        [wire.trace_event(event) for event in events],
        total=total,
        limit=limit,
        offset=offset,
        sort_by="timestamp",
        sort_order="asc",
    )
    return {"run_id": run_id, **answer, "dropped": 0, "complete": True}


@router.get("/runs/{run_id}/checkpoints", operation_id="list_run_checkpoints")
def list_run_checkpoints(run_id: str, service: Here, _principal: Reader) -> Json:
    """Read a run's checkpoints, oldest first."""
    find_run(service.store, run_id)
    with service.store.read() as tx:
        found = [wire.checkpoint(item) for item in runs.list_checkpoints(tx, run_id)]
    answer = wire.page(
        "checkpoints", found, total=len(found), limit=1000, offset=0, sort_by="sequence", sort_order="asc"
    )
    return {"run_id": run_id, **answer}


@router.get("/runs/{run_id}/checkpoints/diff", operation_id="diff_run_checkpoints")
def diff_run_checkpoints(
    run_id: str,
    service: Here,
    _principal: Reader,
    from_sequence: Annotated[int | None, Query(ge=1)] = None,
    to_sequence: Annotated[int | None, Query(ge=1)] = None,
) -> Json:
    """Compare two checkpoints; left out: the last two."""
    past = read_record(service.store, run_id)
    return views.checkpoint_diff(past.run, past.checkpoints, from_sequence, to_sequence)


@router.get("/runs/{run_id}/replay", operation_id="get_run_replay")
def get_run_replay(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read a run's checkpoints as a timeline."""
    return _told(views.replay_view(read_record(service.store, run_id)), published=published)


@router.get("/runs/{run_id}/recovery", operation_id="get_run_recovery")
def get_run_recovery(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read where a run stands and whether it can be continued."""
    return _told(views.recovery_view(read_record(service.store, run_id)), published=published)


@router.post("/runs/{run_id}/continue", operation_id="continue_run")
def continue_(run_id: str, service: Here, published: Published, principal: Writer) -> Json:
    """Try a failed run again from where it stood, and wait until it pauses or ends."""
    return _go_on(service, continue_run(service.store, _programs(service), run_id, actor=principal.name), published)


class RunFork(BaseModel):
    """Where in a run's past another one begins: a step or a checkpoint."""

    model_config = ConfigDict(extra="forbid")

    step: str | None = Field(default=None, description="Path of the step it begins with, `#n` for the n-th time.")
    checkpoint: int | None = Field(default=None, ge=1, description="Or the sequence number of a checkpoint.")
    input: str | None = Field(default=None, description="What that step is given instead.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.step is None) == (self.checkpoint is None):
            msg = "name a step or a checkpoint to begin at, one of them"
            raise ValueError(msg)
        return self


@router.post("/runs/{run_id}/fork", operation_id="fork_run")
def fork_run(run_id: str, body: RunFork, service: Here, published: Published, principal: Writer) -> Json:
    """Start another run from a point in this one's past, and wait until it pauses or ends."""
    limit = service.settings.limits.input_chars
    if len(body.input or "") > limit:
        msg = f"input is {len(body.input or '')} long; at most {limit} is accepted."
        raise Invalid(msg, code="input_too_large", field="input", limit=limit)
    order = ForkOrder(
        run_id=run_id, step=body.step, checkpoint=body.checkpoint, input=body.input, requester=principal.name
    )
    return _go_on(service, fork(service.starter, _programs(service), order), published)


def _told(view: Json, *, published: bool) -> Json:
    """Say the status of a view in the words that were asked for."""
    status = say(RunStatus(str(view["status"])), published=published)
    context = view["replay_context"]
    assert isinstance(context, dict)
    return {**view, "status": status, "replay_context": {**context, "status": status}}


def _programs(service: Service) -> ProgramLoader:
    return ProgramLoader(service.store)


def _go_on(service: Service, run: Run, published: bool) -> Json:
    service.poke()
    settled = wait_until_settled(service.store, run.id, SYNC_SECONDS)
    return wire.run_created(settled, open_task(service, settled), published=published)


@router.post("/runs/{run_id}/cancel", operation_id="cancel_run")
def cancel(run_id: str, service: Here, published: Published, principal: Writer) -> Json:
    """End a run now. What it asked people is withdrawn; what it had begun is not committed."""
    return _status(service, cancel_run(service.store, run_id, actor=principal.name), published=published)
