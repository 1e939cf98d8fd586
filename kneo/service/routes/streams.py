"""Event streams: of one run, and of all human tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.operation import Principal
from kneo.api.runs import get_run
from kneo.api.tasks import list_human_tasks
from kneo.runtime.engine.wait import find_run
from kneo.service.auth import Require
from kneo.service.context import LegacyClient, ServiceDep
from kneo.service.event_streams import DeltaQueue, ReaderAccess, run_events, task_events, while_readable
from kneo.service.routing import ApiRouter, Responses
from kneo.store import task_feed

run_router = ApiRouter(tags=["runs"])
task_router = ApiRouter(tags=["human tasks"])

MAX_NUMBER = 2**31 - 1
"""The highest number of an event."""

RunReader = Annotated[Principal, Depends(Require("runs:read"))]
TaskReader = Annotated[Principal, Depends(Require("human:read"))]

EVENT_STREAM: Responses = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@run_router.get(
    "/runs/{run_id}/events",
    operation_id="stream_run_events",
    response_class=Response,
    responses=EVENT_STREAM,
)
async def stream_run_events(
    run_id: str,
    service: ServiceDep,
    published: LegacyClient,
    principal: RunReader,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_NUMBER)] = None,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="The number of the last received event.")] = 0,
    deltas: Annotated[
        bool, Query(description="Also send `model_delta`: replies of models while they arrive. Some may be missing.")
    ] = False,
) -> Response:
    """Stream the events of a run until it ends, from its beginning or after a given event.

    Each trace event has the name of its type and its number as id; `status` reports that the run pauses or continues,
    `end` that it has ended, after which the stream closes. With `deltas=1` also `model_delta`, without an id: `text` stands
    at `offset` in the reply to the request number `request` of the agent at `step_id`. Offset 0 starts a reply again, and a
    higher one than expected shows that text was lost; `model_completed` and the step's output have all of it. Nothing is
    sent before the step has ended where an output guardrail or a person checks its output.
    """
    await run_in_threadpool(get_run.check, service.context(principal), {"run_id": run_id})
    run = await run_in_threadpool(find_run, service.store, run_id)
    access = ReaderAccess(service.changes, principal, get_run.scopes)
    seen = last_event_id if last_event_id is not None else after
    events = run_events(
        service.reads,
        run_id,
        min(seen, run.trace_count),
        since=run.trace_count,
        heartbeat=service.settings.http.stream_heartbeat_seconds,
        published=published,
        deltas=DeltaQueue() if deltas else None,
    )
    return service.streams.answer(while_readable(events, access, run.environment), principal.name)


@task_router.get(
    "/human-tasks/stream",
    operation_id="stream_human_tasks",
    response_class=Response,
    responses=EVENT_STREAM,
)
async def stream_human_tasks(
    service: ServiceDep,
    principal: TaskReader,
    last_event_id: Annotated[
        str | None,
        Header(max_length=40, description="Continue after the event with this id; `0` is before the first one."),
    ] = None,
) -> Response:
    """Stream the events of the inbox, from now on or after a given event: each event once, in the same order for every
    reader.
    """
    store = service.context(principal).within(list_human_tasks.scopes).store
    cursor = await run_in_threadpool(task_feed.find_cursor, store, last_event_id)
    heartbeat = service.settings.http.stream_heartbeat_seconds
    access = ReaderAccess(service.changes, principal, list_human_tasks.scopes)
    await access.advance()
    events = task_events(service.reads, cursor, access, heartbeat=heartbeat)
    return service.streams.answer(while_readable(events, access), principal.name)
