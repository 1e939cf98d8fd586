"""Putting the service together: one application over one store."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI

from kneo import WIRE_VERSION
from kneo.runtime.start import Starter
from kneo.service import problems
from kneo.service.auth import keyring
from kneo.service.context import Service
from kneo.service.limits import BodyLimit
from kneo.service.routes import audit, bundles, environments, health, hooks, human_tasks, promotions, runs
from kneo.settings import Settings
from kneo.store.engine import Store


def create_app(settings: Settings, store: Store, starter: Starter, *, poke: Callable[[], None]) -> FastAPI:
    """Make the application.

    Raises:
        Invalid: the configured API keys make no sense.
    """
    app = FastAPI(title="Kneo", version=WIRE_VERSION)
    app.state.service = Service(settings, store, starter, keyring(settings), poke)
    app.add_middleware(BodyLimit, max_bytes=settings.limits.body_bytes)
    problems.install(app)
    api = APIRouter()
    for module in (health, runs, human_tasks, environments, promotions, bundles, hooks, audit):
        api.include_router(module.router)
    app.include_router(api, prefix="/v1")
    app.include_router(api, include_in_schema=False)
    return app
