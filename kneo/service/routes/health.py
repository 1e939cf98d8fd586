"""Health and metrics of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from kneo import WIRE_VERSION, __version__, registry
from kneo.api.operation import Json
from kneo.service.auth import PRINCIPAL
from kneo.service.context import ServiceDep
from kneo.service.problems import RETRY_AFTER_SECONDS, problem
from kneo.service.routing import ApiRouter, JsonResponse, responds

router = ApiRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])


@dataclass(frozen=True, kw_only=True)
class HealthView:
    """The health of this process."""

    ok: bool
    service: str
    version: Annotated[str, Field(description="The version of the API contract.")]
    build: Annotated[str, Field(description="This package's version.")]
    metadata: Json

    @classmethod
    def of(cls, metadata: Json) -> HealthView:
        """Return the view of a healthy process."""
        return cls(ok=True, service="kneo-serv-platform", version=WIRE_VERSION, build=__version__, metadata=metadata)


@router.get("/healthz", operation_id="health", responses=responds(HealthView))
@router.get("/livez", operation_id="live", responses=responds(HealthView))
async def live(service: ServiceDep) -> Response:
    """Check that the process is alive; with a worker or a controller in it, that they work."""
    # On the event loop, so that it responds when every thread is busy.
    if not service.alive():
        return problem(503, "not_alive", "The worker or the controller in this process hangs; see its log.", {})
    return JsonResponse(HealthView.of({"status": "healthy"}))


@router.get("/readyz", operation_id="ready", responses=responds(HealthView))
def ready(service: ServiceDep) -> HealthView | JsonResponse:
    """Check that requests can be served, with the result of each check; 503 when one fails."""
    checks = service.readiness.checks()
    failing = [name for name, check in checks.items() if not check["ok"]]
    metadata: Json = {"ready": not failing, "manager": "PlatformManager", "checks": checks}
    if failing:
        message = f"Not ready: {', '.join(failing)}."
        return problem(503, "not_ready", message, {"metadata": metadata}, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    return HealthView.of(metadata)


@metrics_router.get(
    "/metrics",
    operation_id="get_metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text."}},
)
def get_metrics(service: ServiceDep, request: Request) -> Response:
    """Return the metrics of this process and the database, in Prometheus's text format.

    A caller from whom an environment is hidden gets the usage of models in the other ones alone.
    """
    reach = None
    principal = request.scope.get(PRINCIPAL)
    if principal is not None:
        with service.store.read() as tx:
            reach = registry.find_reach(tx, principal, ("runs:read",))
    return Response(service.metrics.text(reach), media_type="text/plain; version=0.0.4; charset=utf-8")
