"""The audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from kneo.service import wire
from kneo.service.audit_proofs import checkpoint, prove
from kneo.service.auth import Principal, require
from kneo.service.context import Here
from kneo.service.wire import Json
from kneo.store import audit
from kneo.store.service_key import service_key

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


@router.get("/audit/checkpoint", operation_id="get_audit_checkpoint")
def get_audit_checkpoint(service: Here, _principal: Reader) -> Json:
    """Sign how long the log is and what is in it. Keep it elsewhere: it shows later whether the log was rewritten."""
    key = service_key(service.settings)
    return checkpoint(service.store, key) | {"key": key.public.pem}


@router.get("/audit/proof", operation_id="get_audit_proof")
def get_audit_proof(
    service: Here,
    _principal: Reader,
    seq: Annotated[int, Query(ge=1)],
    size: Annotated[int | None, Query(ge=1)] = None,
) -> Json:
    """Prove that an event is in the log, in a form that can be checked without this service."""
    return prove(service.store, service_key(service.settings), seq, size)
