"""Numbers for whoever watches."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from kneo.service.context import ServiceDep

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    operation_id="get_metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text."}},
)
def get_metrics(service: ServiceDep) -> Response:
    """Read this process's counters and how the database stands, in Prometheus's text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
