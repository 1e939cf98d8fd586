"""Runs: start, look, cancel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from fastapi import Depends, Query
from pydantic import Field, model_validator
from starlette.responses import Response

from kneo.clock import isoformat, parse_time
from kneo.errors import Invalid, NotFound, Usage
from kneo.runtime import views
from kneo.runtime.cancel import cancel_run
from kneo.runtime.load import ProgramLoader
from kneo.runtime.recover import ForkOrder, continue_run, fork, read_record
from kneo.runtime.start import RunOrder
from kneo.runtime.wait import find_run, wait_until_settled
from kneo.service import answers, wire
from kneo.service.auth import Principal, require
from kneo.service.bodies import Body, Name, SkillsChange, SpecRequest, overlay_of
from kneo.service.context import Here, Published, Service
from kneo.service.router import JsonAnswer, Router, shows
from kneo.service.specs import SpecOrder, usable
from kneo.service.wire import Json
from kneo.service.words import parse_status, say
from kneo.spec.context import NOTHING_KNOWN
from kneo.spec.graph import spec_graph
from kneo.spec.models import Spec
from kneo.spec.policy_report import policy_report
from kneo.spec.rules import check
from kneo.state.run import Run, RunStatus
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store import audit, history, runs, tasks
from kneo.store.run_filter import RunFilter

router = Router(tags=["runs"])

SYNC_SECONDS = 120.0
"""How long a synchronous request waits before it answers that the run goes on."""

MAX_SECONDS = 10 * 365 * 86_400
"""Longest time a run may be given."""

STARTED = shows(answers.RunCreated, description="It paused or ended.") | shows(
    answers.RunCreated, 202, "It goes on; look again later."
)

Word = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10_000)]
Order = Literal["asc", "desc"]
Moment = Annotated[str, Query(max_length=60, description="A time, as in 2026-01-31T12:00:00Z.")]

Reader = Annotated[Principal, Depends(require("runs:read"))]
Writer = Annotated[Principal, Depends(require("runs:write"))]


class RunCreate(SpecRequest):
    """Run a bundle that an environment serves, or, where that is allowed, a spec of your own."""

    input: str
    bundle: Name | None = Field(default=None, description="`name`, `name@version` or `sha256:…`.")
    target: Literal["agent", "workflow"] = "workflow"
    async_mode: bool = False
    metadata: dict[str, object] = Field(default_factory=dict)
    session_id: str | None = Field(default=None, max_length=200, description="The conversation this run belongs to.")
    skills: SkillsChange | None = None
    timeout_seconds: int | None = Field(default=None, gt=0, le=MAX_SECONDS)

    def order(self) -> SpecOrder:
        return replace(super().order(), skills=overlay_of(self.skills))


@router.post("/runs", operation_id="create_run", responses=STARTED)
def create_run(body: RunCreate, service: Here, published: Published, principal: Writer) -> Response:
    """Start a run; unless `async_mode`, wait until it pauses or ends."""
    return _begun(service, _start(body, service, principal), body, published=published)


@router.post("/specs/run", operation_id="run_spec", responses=STARTED)
def run_spec(body: RunCreate, service: Here, published: Published, principal: Writer) -> Response:
    """Do what `POST /v1/runs` does, under its other name."""
    run = _start(body, service, principal)
    facts = body.order().origin() | {"target": body.target, "status": run.status}
    with service.store.write() as tx:
        audit.record(tx, "spec.run", actor=principal.name, run_id=run.id, environment=body.environment, metadata=facts)
    return _begun(service, run, body, published=published)


def _start(body: RunCreate, service: Service, principal: Principal) -> Run:
    order = body.order()
    _check_sizes(body, service)
    origin = order.origin() | {
        "overrides": dict(order.overrides),
        "skills_overlay": body.skills.model_dump() if body.skills else None,
        "async_mode": body.async_mode,
        "session_id": body.session_id,
    }
    run = service.starter.start(
        RunOrder(
            input=body.input,
            requester=principal.name,
            target=body.target,
            environment=body.environment,
            bundle=body.bundle,
            spec=_spec(order, body.bundle, service),
            timeout_seconds=body.timeout_seconds,
            metadata=body.metadata,
            origin=origin,
        )
    )
    service.poke()
    return run


def _spec(order: SpecOrder, bundle: str | None, service: Service) -> Mapping[str, object] | None:
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


def _begun(service: Service, run: Run, body: RunCreate, *, published: bool) -> Response:
    if not body.async_mode:
        run = wait_until_settled(service.store, run.id, SYNC_SECONDS)
    answer = wire.run_created(run, open_task(service, run), published=published)
    return JsonAnswer(answer, 202 if run.status is RunStatus.RUNNING else 200)


def _check_sizes(body: RunCreate, service: Service) -> None:
    limits = service.settings.limits
    service.specs.check_sizes(body.order())
    for name, size, limit in (
        ("input", len(body.input), limits.input_chars),
        ("metadata", len(json.dumps(body.metadata)), limits.metadata_bytes),
    ):
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


@router.get("/runs", operation_id="list_runs", responses=shows(answers.RunList))
def list_runs(
    service: Here,
    published: Published,
    _principal: Reader,
    status: Word | None = None,
    environment: Word | None = None,
    bundle: Word | None = None,
    workflow_kind: Word | None = None,
    workflow_name: Word | None = None,
    session_id: Word | None = None,
    has_error: bool | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    q: Annotated[str | None, Query(max_length=200, description="Somewhere in what went in or came out.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Word = "updated_at",
    sort_order: Order = "desc",
) -> Json:
    """List runs, the most recently changed first."""
    wanted = parse_status(status) if status is not None else None
    if status is not None and wanted is None:
        return wire.page("runs", [], total=0, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)
    with service.store.read() as tx:
        where = RunFilter(
            status=wanted,
            environment=environment,
            bundle=bundle,
            target=workflow_kind,
            workflow_name=workflow_name,
            session_id=session_id,
            has_error=has_error,
            created_after=_moment(created_after),
            created_before=_moment(created_before),
            text=q,
        )
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
    items = [wire.run_status(run, asked.get(run.id), published=published) for run in found]
    return wire.page("runs", items, total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)


def _moment(text: str | None) -> str | None:
    """Read a time and write it as it is stored.

    Raises:
        Invalid: ``invalid_timestamp``.
    """
    if text is None:
        return None
    try:
        return isoformat(parse_time(text))
    except Invalid as error:
        raise BadMoment(error.message) from error


class BadMoment(Invalid):
    http_status = 422
    default_code = "invalid_timestamp"


def _waits(run: Run) -> bool:
    return run.status is RunStatus.PAUSED


@router.get("/runs/{run_id}", operation_id="get_run", responses=shows(answers.RunStatus))
def get_run(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read one run."""
    return _status(service, find_run(service.store, run_id), published=published)


def _status(service: Service, run: Run, *, published: bool) -> Json:
    return wire.run_status(run, open_task(service, run), published=published)


@router.get("/runs/{run_id}/trace", operation_id="get_run_trace", responses=shows(answers.Trace))
def get_run_trace(
    run_id: str,
    service: Here,
    _principal: Reader,
    event_type: Word | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Word = "timestamp",
    sort_order: Order = "asc",
) -> Json:
    """Read what happened in a run, step by step."""
    find_run(service.store, run_id)
    with service.store.read() as tx:
        events = runs.list_trace(
            tx, run_id, event_type=event_type, descending=sort_order == "desc", limit=limit, offset=offset
        )
        total = runs.count_trace(tx, run_id, event_type=event_type)
    answer = wire.page(
        "events",
        [wire.trace_event(event) for event in events],
        total=total,
        limit=limit,
        offset=offset,
        sort_by=sort_by,
        sort_order=sort_order,
    )
    return {"run_id": run_id, **answer, "dropped": 0, "complete": True}


@router.get("/runs/{run_id}/checkpoints", operation_id="list_run_checkpoints", responses=shows(answers.CheckpointList))
def list_run_checkpoints(
    run_id: str,
    service: Here,
    _principal: Reader,
    type: Word | None = None,  # noqa: A002 - the published name of the parameter
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Word = "sequence",
    sort_order: Order = "asc",
) -> Json:
    """Read a run's checkpoints, oldest first."""
    find_run(service.store, run_id)
    with service.store.read() as tx:
        found, total = history.page_of_checkpoints(
            tx, run_id, type_=type, descending=sort_order == "desc", limit=limit, offset=offset
        )
    answer = wire.page(
        "checkpoints",
        [wire.checkpoint(item) for item in found],
        total=total,
        limit=limit,
        offset=offset,
        sort_by=sort_by,
        sort_order=sort_order,
    )
    return {"run_id": run_id, **answer}


@router.get(
    "/runs/{run_id}/checkpoints/diff", operation_id="diff_run_checkpoints", responses=shows(answers.CheckpointDiff)
)
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


@router.get("/runs/{run_id}/replay", operation_id="get_run_replay", responses=shows(answers.RunReplay))
def get_run_replay(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read a run's checkpoints as a timeline."""
    return _told(views.replay_view(read_record(service.store, run_id)), published=published)


@router.get("/runs/{run_id}/recovery", operation_id="get_run_recovery", responses=shows(answers.RunRecovery))
def get_run_recovery(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Read where a run stands and whether it can be continued."""
    return _told(views.recovery_view(read_record(service.store, run_id)), published=published)


@router.post("/runs/{run_id}/continue", operation_id="continue_run", responses=STARTED)
def continue_(run_id: str, service: Here, published: Published, principal: Writer) -> Response:
    """Try a failed run again from where it stood, and wait until it pauses or ends."""
    return _go_on(service, continue_run(service.store, _programs(service), run_id, actor=principal.name), published)


class RunFork(Body):
    """Where in a run's past another one begins: a step or a checkpoint."""

    step: str | None = Field(default=None, description="Path of the step it begins with, `#n` for the n-th time.")
    checkpoint: int | None = Field(default=None, ge=1, description="Or the sequence number of a checkpoint.")
    input: str | None = Field(default=None, description="What that step is given instead.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.step is None) == (self.checkpoint is None):
            msg = "name a step or a checkpoint to begin at, one of them"
            raise ValueError(msg)
        return self


@router.post("/runs/{run_id}/fork", operation_id="fork_run", responses=STARTED)
def fork_run(run_id: str, body: RunFork, service: Here, published: Published, principal: Writer) -> Response:
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


def _go_on(service: Service, run: Run, published: bool) -> Response:
    service.poke()
    settled = wait_until_settled(service.store, run.id, SYNC_SECONDS)
    answer = wire.run_created(settled, open_task(service, settled), published=published)
    return JsonAnswer(answer, 202 if settled.status is RunStatus.RUNNING else 200)


@router.post("/runs/{run_id}/cancel", operation_id="cancel_run", responses=shows(answers.RunStatus))
def cancel(run_id: str, service: Here, published: Published, principal: Writer) -> Json:
    """End a run now. What it asked people is withdrawn; what it had begun is not committed."""
    return _status(service, cancel_run(service.store, run_id, actor=principal.name), published=published)


@router.get("/runs/{run_id}/graph", operation_id="get_run_graph", responses=shows(answers.RunGraph))
def get_run_graph(run_id: str, service: Here, published: Published, _principal: Reader) -> Json:
    """Draw the workflow a run executes, with where it stands."""
    run = find_run(service.store, run_id)
    task = open_task(service, run)
    drawn = spec_graph(_spec_of(service, run)).as_json()
    visited = list(run.visited_steps)
    return {
        **drawn,
        "run_id": run.id,
        "status": say(run.status, published=published),
        "current": task.step_id if task is not None else visited[-1] if visited else None,
        "visited": visited,
    }


@router.get("/runs/{run_id}/policy-report", operation_id="report_run_policy", responses=shows(answers.PolicyReport))
def report_run_policy(run_id: str, service: Here, principal: Reader) -> Json:
    """Say what whoever approved the spec of a run wanted to know."""
    run = find_run(service.store, run_id)
    spec = _spec_of(service, run)
    report = policy_report(spec, check(spec, NOTHING_KNOWN))
    facts = {"valid": report.valid, "source": "run"}
    with service.store.write() as tx:
        audit.record(tx, "spec.policy_reported", actor=principal.name, run_id=run.id, metadata=facts)
    return {"run_id": run.id, **report.nested()}


def _spec_of(service: Service, run: Run) -> Spec:
    with service.store.read() as tx:
        body = runs.load_spec(tx, run.spec_digest)
    if body is None:
        msg = f"The spec of {run.id} is no longer kept."
        raise NotFound(msg, code="spec_not_found")
    return Spec.model_validate_json(body)
