"""Promotions: what waits for people, what happened, and their decisions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from kneo.service import responses
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.routes.environments import Decider, Reader, deployments
from kneo.service.wire import Json
from kneo.trust.statement import ApprovalDecision

router = Router(tags=["promotions"])


class DecisionOrder(BaseModel):
    """A person's own signed decision; without it the service signs for the key that asks."""

    model_config = ConfigDict(extra="forbid")

    envelope: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="Why, in one line; a signed decision carries its own."
    )


@router.get("/promotions", operation_id="list_promotions", responses=responds(responses.PromotionList))
def list_promotions(
    service: ServiceDep,
    _principal: Reader,
    environment: str | None = None,
    phase: Literal["waiting", "done"] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Json:
    """List what waits, then what happened, newest first."""
    return deployments(service).promotions(environment, phase, limit)


@router.post(
    "/promotions/{promotion_id}/approve", operation_id="approve_promotion", responses=responds(responses.Decided)
)
def approve(promotion_id: str, service: ServiceDep, principal: Decider, order: DecisionOrder | None = None) -> Json:
    """Agree to what waits under an id."""
    return _decide(promotion_id, ApprovalDecision.APPROVE, service, principal, order)


@router.post(
    "/promotions/{promotion_id}/reject", operation_id="reject_promotion", responses=responds(responses.Decided)
)
def reject(promotion_id: str, service: ServiceDep, principal: Decider, order: DecisionOrder | None = None) -> Json:
    """Refuse what waits under an id, until it is taken back."""
    return _decide(promotion_id, ApprovalDecision.REJECT, service, principal, order)


def _decide(
    promotion_id: str, decision: ApprovalDecision, service: ServiceDep, principal: Decider, order: DecisionOrder | None
) -> Json:
    order = order or DecisionOrder()
    envelope = order.envelope.encode() if order.envelope is not None else None
    return deployments(service).decide_by_id(
        promotion_id, decision, actor=principal.name, envelope=envelope, reason=order.reason
    )
