"""Is it alive, is it ready."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from kneo import WIRE_VERSION, __version__
from kneo.errors import KneoError
from kneo.service import answers
from kneo.service.context import Here
from kneo.service.problems import problem
from kneo.service.router import JsonAnswer, Router, shows
from kneo.service.wire import Json
from kneo.store import requests, runs
from kneo.store.engine import Store

router = Router(tags=["health"])


def _health(metadata: Json) -> Json:
    return {
        "ok": True,
        "service": "kneo-serv-platform",
        "version": WIRE_VERSION,
        "build": __version__,
        "metadata": metadata,
    }


@router.get("/healthz", operation_id="health", responses=shows(answers.Health))
@router.get("/livez", operation_id="live", responses=shows(answers.Health))
async def live(service: Here) -> Response:
    """Answer as long as the process does, and the controller in it, where there is one, finished a look in time."""
    # On the event loop, so that it answers when every thread is busy.
    if not service.alive():
        return problem(503, "not_alive", "The controller in this process finished no look in time.", {})
    return JsonAnswer(_health({"status": "healthy"}))


@router.get("/readyz", operation_id="ready", responses=shows(answers.Health))
def ready(service: Here) -> Json | JSONResponse:
    """Answer when requests can be served: the database works and runs can be stored."""
    checks: Json = {"api": {"name": "api", "ok": True, "status": "ready"}}
    try:
        checks |= _check_store(service.store)
    except KneoError:
        checks["run_state_store"] = {"name": "run_state_store", "ok": False, "error": "check_failed"}
        metadata = {"ready": False, "manager": "PlatformManager", "checks": checks}
        return problem(503, "not_ready", "The database does not answer.", {"metadata": metadata})
    return _health({"ready": True, "manager": "PlatformManager", "checks": checks})


def _check_store(store: Store) -> Json:
    with store.read() as tx:
        queued = len(runs.runnable(tx, 1_000))
        controller = requests.lease_holder(tx, requests.CONTROLLER_LEASE) is not None
    queue = {"name": "queue", "ok": True, "kind": store.engine.dialect.name, "durable": True, "queued": queued}
    return {
        "run_state_store": {"name": "run_state_store", "ok": True},
        "continuation_store": {"name": "continuation_store", "ok": True},
        "queue": queue,
        "controller": {"name": "controller", "ok": True, "running": controller},
    }
