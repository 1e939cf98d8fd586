"""Runs: start, look, cancel."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.runtime.engine.wait import find_run
from kneo.service.auth import require
from kneo.service.context import LegacyClient, ServiceDep
from kneo.service.event_streams import run_events
from kneo.service.router import Router

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
