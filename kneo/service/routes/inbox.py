"""The stream of the inbox."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.event_streams import task_events
from kneo.service.router import Router
from kneo.store import task_feed

router = Router(tags=["human tasks"])

Reader = Annotated[Principal, Depends(require("human:read"))]


@router.get(
    "/human-tasks/stream",
    operation_id="stream_human_tasks",
    response_class=Response,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    },
)
async def stream(
    service: ServiceDep,
    principal: Reader,
    last_event_id: Annotated[
        str | None,
        Header(max_length=40, description="Continue after the event with this id; `0` is before the first one."),
    ] = None,
) -> Response:
    """Follow the inbox, from now on or from after an event that was seen: each event once, in the same order for all."""
    cursor = await run_in_threadpool(task_feed.find_cursor, service.store, last_event_id)
    heartbeat = service.settings.http.stream_heartbeat_seconds
    return service.streams.answer(task_events(service.changes, cursor, heartbeat=heartbeat), principal.name)
