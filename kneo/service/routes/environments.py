"""Environments: what they serve, what waits, and asking the controller to look."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from kneo import registry
from kneo.errors import NotFound
from kneo.service import wire
from kneo.service.auth import Principal, require
from kneo.service.context import Here
from kneo.service.wire import Json
from kneo.store import releases, requests

router = APIRouter(tags=["environments"])

Reader = Annotated[Principal, Depends(require("policies:read"))]
Writer = Annotated[Principal, Depends(require("policies:write"))]


@router.get("/environments", operation_id="list_environments")
def list_environments(service: Here, _principal: Reader) -> Json:
    """List every environment with its conditions, releases and pending gates."""
    with service.store.read() as tx:
        return {"environments": [wire.environment(item) for item in registry.statuses(tx)]}


@router.get("/environments/{name}", operation_id="get_environment")
def get_environment(name: str, service: Here, _principal: Reader) -> Json:
    """Read one environment."""
    with service.store.read() as tx:
        status = registry.status(tx, name)
    if status is None:
        msg = f"There is no environment {name[:80]!r}."
        raise NotFound(msg, code="environment_not_found")
    return wire.environment(status)


@router.get("/environments/{name}/history", operation_id="get_environment_history")
def get_environment_history(
    name: str,
    service: Here,
    _principal: Reader,
    bundle: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Json:
    """List an environment's promotions, newest first."""
    with service.store.read() as tx:
        found = releases.list_promotions(tx, name, bundle)[:limit]
    return {"environment": name, "promotions": [wire.promotion(item) for item in found]}


@router.post("/environments/{name}/reconcile", operation_id="reconcile_environment")
def reconcile(name: str, service: Here, principal: Writer) -> Json:
    """Ask the controller to look at the repository now, and wait for what it finds."""
    result = requests.ask(service.store, "reconcile", {"environment": name}, actor=principal.name)
    with service.store.read() as tx:
        status = registry.status(tx, name)
    return {"result": result, "environment": wire.environment(status) if status else None}
