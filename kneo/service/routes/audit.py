"""The audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query

from kneo.api.context import Principal
from kneo.service import responses, wire
from kneo.service.audit_proofs import checkpoint, prove
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.store import audit
from kneo.store.service_key import service_key

router = Router(tags=["audit"])

MAX_NUMBER = 2**63 - 1
"""Highest number that both databases can store."""

Reader = Annotated[Principal, Depends(require("audit:read"))]


@router.get("/audit-events", operation_id="list_audit_events", responses=responds(responses.AuditList))
def list_audit_events(
    service: ServiceDep,
    _principal: Reader,
    event_type: Annotated[str | None, Query(max_length=200)] = None,
    run_id: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    sort_by: Literal["created_at", "occurred_at", "seq", "id"] = "created_at",
    sort_order: Literal["asc", "desc"] = "desc",
) -> Json:
    """List audit events, newest first, each with its place in the chain."""
    with service.store.read() as tx:
        found = audit.events(
            tx, event_type=event_type, run_id=run_id, limit=limit, offset=offset, descending=sort_order == "desc"
        )
        total = audit.count(tx, event_type=event_type, run_id=run_id)
    items = [wire.audit_event(item) for item in found]
    return wire.page("events", items, total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)


@router.get("/audit/checkpoint", operation_id="get_audit_checkpoint", responses=responds(responses.AuditCheckpoint))
def get_audit_checkpoint(service: ServiceDep, _principal: Reader) -> Json:
    """Sign how long the log is and what is in it. Keep it elsewhere: it shows later whether the log was rewritten."""
    key = service_key(service.settings)
    return checkpoint(service.store, key) | {"key": key.public.pem}


@router.get("/audit/proof", operation_id="get_audit_proof", responses=responds(responses.AuditProof))
def get_audit_proof(
    service: ServiceDep,
    _principal: Reader,
    seq: Annotated[int, Query(ge=1, le=MAX_NUMBER)],
    size: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> Json:
    """Prove that an event is in the log, in a form that can be checked without this service."""
    return prove(service.store, service_key(service.settings), seq, size)
