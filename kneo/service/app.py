"""Putting the service together: one application over one store."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI

from kneo import WIRE_VERSION
from kneo.runtime.start import Starter
from kneo.service import problems
from kneo.service.admission import Admission
from kneo.service.auth import keyring
from kneo.service.context import Service
from kneo.service.limits import BodyLimit
from kneo.service.metrics import Metrics
from kneo.service.openapi import describe
from kneo.service.operations import VERSION, Operations
from kneo.service.requests import Requests
from kneo.service.routes import (
    audit,
    bundles,
    environments,
    health,
    hooks,
    human_tasks,
    metrics,
    policies,
    promotions,
    runs,
    security,
    skills,
    specs,
)
from kneo.service.specs import Specs
from kneo.settings import Settings
from kneo.store.engine import Store

ROUTES = (
    health,
    runs,
    human_tasks,
    specs,
    skills,
    policies,
    security,
    environments,
    promotions,
    bundles,
    hooks,
    audit,
)


def create_app(settings: Settings, store: Store, starter: Starter, *, poke: Callable[[], None]) -> FastAPI:
    """Make the application.

    Raises:
        Invalid: the configured API keys make no sense.
    """
    routers = [module.router for module in ROUTES]
    operations = Operations(routers)
    counted = Metrics(store)
    app = FastAPI(title="Kneo", version=WIRE_VERSION, redirect_slashes=False)
    app.state.service = Service(settings, store, starter, keyring(settings), poke, counted, Specs(settings))
    problems.install(app)
    api = APIRouter()
    for router in routers:
        api.include_router(router)
    app.include_router(api, prefix=VERSION)
    app.include_router(api, include_in_schema=False)
    if settings.http.metrics:
        app.include_router(metrics.router)
    describe(app, operations)
    # The last one added is the first one asked.
    app.add_middleware(Admission, operations=operations, keyring=keyring(settings), settings=settings, store=store)
    app.add_middleware(BodyLimit, max_bytes=settings.limits.body_bytes)
    app.add_middleware(Requests, operations=operations, observer=counted, logged=settings.http.request_logs)
    return app
