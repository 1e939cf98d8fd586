"""The audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from kneo.service import wire
from kneo.service.auth import Principal, require
from kneo.service.context import Here
from kneo.service.wire import Json
from kneo.store import audit

router = APIRouter(tags=["audit"])

Reader = Annotated[Principal, Depends(require("audit:read"))]


@router.get("/audit-events", operation_id="list_audit_events")
def list_audit_events(
    service: Here,
    _principal: Reader,
    event_type: str | None = None,
    run_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> Json:
    """List audit events, newest first, each with its place in the chain."""
    with service.store.read() as tx:
        found = audit.events(tx, event_type=event_type, run_id=run_id, limit=limit, offset=offset)
        total = audit.count(tx, event_type=event_type, run_id=run_id)
    items = [wire.audit_event(item) for item in found]
    return wire.page("events", items, total=total, limit=limit, offset=offset, sort_by="created_at", sort_order="desc")
