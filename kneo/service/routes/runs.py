"""Runs: start, look, cancel."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.api.status_words import say
from kneo.errors import NotFound
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.runtime.engine import views
from kneo.runtime.engine.recover import read_record
from kneo.runtime.engine.wait import find_run, open_tasks
from kneo.service import responses, wire
from kneo.service.auth import require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.event_streams import run_events
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.spec.context import NOTHING_KNOWN
from kneo.spec.coverage.policy_report import policy_report
from kneo.spec.graph import spec_graph
from kneo.spec.lint import check
from kneo.spec.models import Spec
from kneo.spec.models.environment_gates import read_spec
from kneo.store import audit, runs

router = Router(tags=["runs"])

MAX_NUMBER = 2**31 - 1
"""Highest number of an event."""

Word = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10_000)]
Order = Literal["asc", "desc"]
Moment = Annotated[str, Query(max_length=60, description="A time, as in 2026-01-31T12:00:00Z.")]

Reader = Annotated[Principal, Depends(require("runs:read"))]
Writer = Annotated[Principal, Depends(require("runs:write"))]


def open_task(service: Service, run: Run) -> HumanTask | None:
    """Find what a paused run asks."""
    with service.store.read() as tx:
        return next(iter(open_tasks(tx, run)), None)


@router.get(
    "/runs/{run_id}/checkpoints/diff", operation_id="diff_run_checkpoints", responses=responds(responses.CheckpointDiff)
)
def diff_run_checkpoints(
    run_id: str,
    service: ServiceDep,
    _principal: Reader,
    from_sequence: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
    to_sequence: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> Json:
    """Compare two checkpoints; left out: the last two."""
    past = read_record(service.store, run_id)
    return wire.view(views.checkpoint_diff(past.run, past.checkpoints, from_sequence, to_sequence))


@router.get("/runs/{run_id}/replay", operation_id="get_run_replay", responses=responds(responses.RunReplay))
def get_run_replay(run_id: str, service: ServiceDep, published: LegacyClient, _principal: Reader) -> Json:
    """Read a run's checkpoints as a timeline."""
    return _told(wire.view(views.replay_view(read_record(service.store, run_id))), published=published)


@router.get("/runs/{run_id}/recovery", operation_id="get_run_recovery", responses=responds(responses.RunRecovery))
def get_run_recovery(run_id: str, service: ServiceDep, published: LegacyClient, _principal: Reader) -> Json:
    """Read where a run stands and whether it can be continued."""
    return _told(wire.view(views.recovery_view(read_record(service.store, run_id))), published=published)


def _told(view: Json, *, published: bool) -> Json:
    """Say the status of a view in the words that were asked for."""
    status = say(RunStatus(str(view["status"])), published=published)
    context = view["replay_context"]
    assert isinstance(context, dict)
    return {**view, "status": status, "replay_context": {**context, "status": status}}


@router.get("/runs/{run_id}/graph", operation_id="get_run_graph", responses=responds(responses.RunGraph))
def get_run_graph(run_id: str, service: ServiceDep, published: LegacyClient, _principal: Reader) -> Json:
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


@router.get(
    "/runs/{run_id}/policy-report", operation_id="report_run_policy", responses=responds(responses.PolicyReport)
)
def report_run_policy(run_id: str, service: ServiceDep, principal: Reader) -> Json:
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
    return read_spec(body)


@router.get(
    "/runs/{run_id}/events",
    operation_id="stream_run_events",
    response_class=Response,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    },
)
async def stream_run_events(
    run_id: str,
    service: ServiceDep,
    published: LegacyClient,
    principal: Reader,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_NUMBER)] = None,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="The number of the last event that is known.")] = 0,
) -> Response:
    """Follow what happens in a run until it ends, from its beginning or from after the last event that was seen.

    Each trace event has the name of its type and its number as id; `status` says that the run pauses or goes on, `end`
    that it has ended, after which there is no more.
    """
    await run_in_threadpool(find_run, service.store, run_id)
    seen = last_event_id if last_event_id is not None else after
    heartbeat = service.settings.http.stream_heartbeat_seconds
    events = run_events(service.changes, run_id, seen, heartbeat=heartbeat, published=published)
    return service.streams.answer(events, principal.name)
