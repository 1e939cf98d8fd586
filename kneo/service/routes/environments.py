"""Environments: what they serve, what waits and why, and what people decide about them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from kneo import registry
from kneo.api.context import Principal
from kneo.service import responses, wire
from kneo.service.auth import require
from kneo.service.context import Service, ServiceDep
from kneo.service.deployments import Deployments
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.store import releases, requests

router = Router(tags=["environments"])

Reader = Annotated[Principal, Depends(require("releases:read"))]
RunReader = Annotated[Principal, Depends(require("runs:read"))]
Operator = Annotated[Principal, Depends(require("releases:operate"))]
Decider = Annotated[Principal, Depends(require("releases:decide"))]

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Moment = Annotated[str, Field(max_length=60)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SuspendOrder(_Body):
    reason: Text
    until: Moment | None = None


class HoldOrder(_Body):
    bundle: Text
    reason: Text
    until: Moment | None = None


class UnholdOrder(_Body):
    bundle: Text


class RollbackOrder(_Body):
    bundle: Text
    reason: Text
    to: Text | None = None


class RewriteOrder(_Body):
    envelope: Annotated[str, Field(min_length=1, max_length=65_536)]
    """The signed decision of somebody of the root role."""


def deployments(service: Service) -> Deployments:
    return Deployments(service.store, service.settings, over_http=True)


@router.get("/environments", operation_id="list_environments", responses=responds(responses.EnvironmentList))
def list_environments(service: ServiceDep, _principal: Reader) -> Json:
    """List every environment with its conditions, releases and pending gates."""
    with service.store.read() as tx:
        return {"environments": [wire.environment(item) for item in registry.statuses(tx)]}


@router.get("/environments/{name}", operation_id="get_environment", responses=responds(responses.Environment))
def get_environment(name: str, service: ServiceDep, _principal: Reader) -> Json:
    """Read one environment."""
    with service.store.read() as tx:
        return wire.environment(registry.find_status(tx, name))


@router.get(
    "/environments/{name}/history",
    operation_id="get_environment_history",
    responses=responds(responses.EnvironmentHistory),
)
def get_environment_history(
    name: str,
    service: ServiceDep,
    _principal: Reader,
    bundle: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Json:
    """List an environment's promotions, newest first."""
    with service.store.read() as tx:
        registry.find_status(tx, name)
        return wire.history(tx, name, releases.list_promotions(tx, name, bundle, limit))


@router.get("/environments/{name}/why/{bundle}", operation_id="explain_release", responses=responds(responses.Why))
def explain_release(name: str, bundle: str, service: ServiceDep, _principal: Reader) -> Json:
    """Say which gate blocks a bundle, since when, and who can open it."""
    return deployments(service).why(name, bundle)


@router.get("/environments/{name}/plan", operation_id="plan_environment", responses=responds(responses.Plan))
def plan_environment(
    name: str, service: ServiceDep, principal: Reader, ref: Annotated[str | None, Query(max_length=250)] = None
) -> Json:
    """Ask the controller what a commit would change here."""
    return deployments(service).plan(name, ref, actor=principal.name)


@router.get("/trace/{reference}", operation_id="trace", responses=responds(responses.Traced))
def trace(reference: str, service: ServiceDep, _principal: Reader, _runs: RunReader) -> Json:
    """Follow a run, or the digest of a bundle, back to its commit and the people who vouch for it."""
    return deployments(service).trace(reference)


@router.post(
    "/environments/{name}/reconcile", operation_id="reconcile_environment", responses=responds(responses.Changed)
)
def reconcile(name: str, service: ServiceDep, principal: Operator) -> Json:
    """Ask the controller to look at the repository now, and wait for what it finds."""
    result = requests.ask(service.store, "reconcile", {"environment": name}, actor=principal.name)
    with service.store.read() as tx:
        status = registry.status(tx, name)
    return {"result": result, "environment": wire.environment(status) if status else None}


@router.post("/environments/{name}/suspend", operation_id="suspend_environment", responses=responds(responses.Changed))
def suspend(name: str, order: SuspendOrder, service: ServiceDep, principal: Operator) -> Json:
    """Change nothing here until a time, or until somebody lifts it; what runs keeps running."""
    return deployments(service).suspend(name, order.reason, order.until, actor=principal.name)


@router.post(
    "/environments/{name}/unsuspend", operation_id="unsuspend_environment", responses=responds(responses.Changed)
)
def unsuspend(name: str, service: ServiceDep, principal: Operator) -> Json:
    """Let the environment change again."""
    return deployments(service).unsuspend(name, actor=principal.name)


@router.post("/environments/{name}/rollback", operation_id="rollback_release", responses=responds(responses.Changed))
def rollback(name: str, order: RollbackOrder, service: ServiceDep, principal: Operator) -> Json:
    """Serve what was served before, and hold it there."""
    return deployments(service).rollback(name, order.bundle, order.to, order.reason, actor=principal.name)


@router.post("/environments/{name}/hold", operation_id="hold_release", responses=responds(responses.Changed))
def hold(name: str, order: HoldOrder, service: ServiceDep, principal: Operator) -> Json:
    """Keep what is served of a bundle as it is, whatever Git says."""
    return deployments(service).hold(name, order.bundle, order.reason, order.until, actor=principal.name)


@router.post("/environments/{name}/unhold", operation_id="unhold_release", responses=responds(responses.Changed))
def unhold(name: str, order: UnholdOrder, service: ServiceDep, principal: Operator) -> Json:
    """Let a bundle follow Git again."""
    return deployments(service).unhold(name, order.bundle, actor=principal.name)


@router.get("/source", operation_id="get_source", responses=responds(responses.Source))
def get_source(service: ServiceDep, _principal: Reader) -> Json:
    """Say how far the repository was followed, and why not further."""
    return deployments(service).source()


@router.post("/source/accept-rewrite", operation_id="accept_rewrite", responses=responds(responses.Decided))
def accept_rewrite(order: RewriteOrder, service: ServiceDep, principal: Decider) -> Json:
    """Record that somebody of the root role agrees to a rewritten history."""
    return deployments(service).accept_rewrite(order.envelope.encode(), actor=principal.name)
