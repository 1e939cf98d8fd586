"""The application: settings, a store and a starter behind one set of routes."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from kneo import WIRE_VERSION
from kneo.api import (
    access,
    agents,
    audit,
    bundles,
    calls,
    canaries,
    credentials,
    decisions,
    environments,
    identity,
    inbox,
    policies,
    promotion_receipts,
    promotions,
    receipts,
    recordings,
    run_answers,
    run_conversation,
    run_history,
    run_start,
    run_steps,
    sessions,
    specs,
    usage,
)
from kneo.api import grants as grants_api
from kneo.api import links as links_api
from kneo.api import runs as runs_api
from kneo.api import tasks as tasks_api
from kneo.embed.platform import PlatformManager
from kneo.errors import KneoError, Usage
from kneo.runtime.engine.start import Starter
from kneo.service import problems
from kneo.service.access_log import AccessLog, RequestMetrics
from kneo.service.admission import Admission
from kneo.service.auth import AuthConfig, configured, hash_keys, keyring
from kneo.service.callers import Callers, HeadCheck, make_callers
from kneo.service.console import links
from kneo.service.console.app import Console, show_console
from kneo.service.console.parts import load_parts
from kneo.service.context import Service, mount
from kneo.service.dependencies import chosen_platform_manager, default_platform_manager
from kneo.service.events import Streams
from kneo.service.hidden_reads import HiddenReads
from kneo.service.limits import BodyLimit, RequestLimits
from kneo.service.metrics import Metrics
from kneo.service.mounts import load_routers
from kneo.service.openapi import describe
from kneo.service.readiness import Readiness
from kneo.service.routes import health, hooks, streams
from kneo.service.routing import VERSION, ApiRouter, DirectRoute, RouteTable
from kneo.service.shared_reads import SharedReads
from kneo.settings import Settings, from_env
from kneo.store import audit as audit_log
from kneo.store import oidc_people, project_metadata
from kneo.store.change_feed import ChangeFeed
from kneo.store.engine import Store, Tx

log = logging.getLogger("kneo.service")

App = FastAPI
"""The type of the application, for modules that do not import FastAPI."""

SILENT: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
"""No telemetry by the framework: it would record messages of exceptions, which hold texts of people, and a second span."""

ROUTERS: tuple[ApiRouter, ...] = (
    health.router,
    mount(identity, "identity"),
    mount(inbox, "inbox"),
    streams.run_router,
    streams.task_router,
    hooks.router,
    mount(run_start, "runs"),
    mount(run_answers, "human tasks"),
    mount(tasks_api, "human tasks"),
    mount(decisions, "human tasks"),
    mount(links_api, "human tasks"),
    mount(grants_api, "grants"),
    mount(receipts, "receipts"),
    mount(run_history, "runs"),
    mount(runs_api, "runs"),
    mount(run_steps, "runs"),
    mount(run_conversation, "runs"),
    mount(sessions, "sessions"),
    mount(usage, "usage"),
    mount(specs, "specs"),
    mount(policies, "policies"),
    mount(credentials, "security"),
    mount(environments, "environments"),
    mount(access, "environments"),
    mount(canaries, "canaries"),
    mount(recordings, "environments"),
    mount(promotions, "promotions"),
    mount(promotion_receipts, "promotions"),
    mount(bundles, "bundles"),
    mount(agents, "protocols"),
    mount(calls, "calls"),
    mount(audit, "audit"),
)
"""The routes of Kneo under the version."""


@functools.cache
def routers() -> tuple[ApiRouter, ...]:
    """Return everything under the version: the routes of Kneo, then those of extensions.

    Raises:
        ExtensionFailed: an extension cannot be loaded.
    """
    return (*ROUTERS, *load_routers())


def create_app(  # noqa: PLR0913 - the parts of an application, all but the first three by name
    settings: Settings | None = None,
    store: Store | None = None,
    starter: Starter | None = None,
    *,
    alive: Callable[[], bool] = lambda: True,
    tools: frozenset[str] = frozenset(),
    configure_default_manager: bool = True,
    state_path: str | Path | None = None,
    auth_config: AuthConfig | None = None,
    auth_enabled: bool | None = None,
    request_limits: RequestLimits | None = None,
) -> FastAPI:
    """Make the application over its parts or, without them, over a platform.

    Args:
        settings: This process's settings.
        store: The database.
        starter: Starts runs.
        alive: Returns whether the controller of this process still works; otherwise ``/livez`` responds 503.
        tools: Tools that specs may name without declaring them.
        configure_default_manager: Make the default platform, with a worker, where none was set. Otherwise the one
            that ``set_platform_manager`` sets before the first request is served.
        state_path: The default platform's SQLite file.
        auth_config: The API keys, and whether one is needed, in place of what the settings say.
        auth_enabled: Whether an API key is needed, in place of the setting.
        request_limits: Bounds on requests, in place of what the settings say.

    Raises:
        Invalid: API keys or limits are not valid.
        Usage: settings, store and starter are not passed together.
    """
    app = _PlatformApp(
        title="Kneo", version=WIRE_VERSION, redirect_slashes=False, lifespan=_until_the_end, telemetry=SILENT
    )
    app.instead = _Instead(auth_config, auth_enabled, request_limits)
    if settings is not None and store is not None and starter is not None:
        _furnish(app, settings, store, starter, tools, alive)
    elif (settings, store, starter) != (None, None, None):
        msg = "An application is made of settings, store and starter together, or of a platform."
        raise Usage(msg)
    elif configure_default_manager:
        app.furnish(default_platform_manager(state_path))
    return app


@dataclass(frozen=True)
class _Instead:
    """Parameters of ``create_app`` in place of settings."""

    auth: AuthConfig | None = None
    auth_enabled: bool | None = None
    limits: RequestLimits | None = None

    def applied(self, settings: Settings) -> tuple[Settings, AuthConfig]:
        auth = self.auth if self.auth is not None else configured(settings)
        if self.auth_enabled is not None:
            auth = replace(auth, enabled=self.auth_enabled)
        limits = self.limits.as_limits() if self.limits is not None else settings.limits
        return replace(settings, auth_enabled=auth.enabled, limits=limits), auth


class _PlatformApp(FastAPI):
    """The application over a platform that may be set after it was made."""

    instead = _Instead()

    def furnish(self, manager: PlatformManager) -> None:
        _furnish(self, manager.settings, manager.store, manager.starter, manager.compiler.tools)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not hasattr(self.state, "service"):
            self.furnish(chosen_platform_manager())
        await super().__call__(scope, receive, send)


def _furnish(
    app: _PlatformApp,
    settings: Settings,
    store: Store,
    starter: Starter,
    tools: frozenset[str],
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Add the routes, their service and the middleware to an application."""
    settings, auth = app.instead.applied(settings)
    ring = keyring(auth)
    callers = make_callers(settings.oidc, store, ring)
    for part in load_parts():
        part.check(settings)
    store.transact(lambda tx: _record_callers(tx, callers, settings))
    routes = _route(app, metrics_too=settings.http.metrics)
    app.state.service = service = make_service(settings, store, starter, callers, tools, alive)
    app.mount("/console", Console(app.state.service).application())
    # The middleware that is added last handles a request first.
    app.add_middleware(Admission, callers=callers, settings=settings, store=store)
    app.add_middleware(BodyLimit, max_bytes=settings.limits.body_bytes)
    app.add_middleware(HeadCheck, settings=settings, callers=callers)
    app.add_middleware(
        AccessLog, routes=routes, metrics=RequestMetrics(service.metrics.registry), logged=settings.http.request_logs
    )


def _record_callers(tx: Tx, callers: Callers, settings: Settings) -> None:
    """Store whose credentials the service accepts, for processes without these settings, and end what needs others."""
    project_metadata.put_key_names(tx, callers.keyring.names, callers.issuer)
    oidc_people.keep_issuer(tx, callers.issuer)
    for part in load_parts():
        part.keep(tx, settings, callers.keyring)


def make_service(
    settings: Settings,
    store: Store,
    starter: Starter,
    callers: Callers,
    tools: frozenset[str],
    alive: Callable[[], bool] = lambda: True,
) -> Service:
    """Return the parts of a service."""
    streams = Streams(
        settings.http.max_streams, settings.http.max_streams_per_person, settings.http.stream_slow_seconds
    )
    changes = ChangeFeed(store)
    return Service(
        settings=settings,
        store=store,
        starter=starter,
        callers=callers,
        alive=alive,
        metrics=Metrics(store, streams),
        changes=changes,
        reads=SharedReads(changes),
        streams=streams,
        readiness=Readiness(settings, store, starter.project, tools),
        hidden_reads=HiddenReads(store),
        tools=tools,
    )


def _route(app: FastAPI, *, metrics_too: bool) -> RouteTable:
    routes = RouteTable(routers())
    problems.install(app)
    app.router.routes.insert(0, DirectRoute())
    app.include_router(links.pages)
    for path in ("/", "/console"):
        app.add_api_route(path, show_console, methods=["GET"], include_in_schema=False)
    if metrics_too:
        app.include_router(health.metrics_router)
    describe(app, routes, _api)
    return routes


@functools.cache
def _api() -> APIRouter:
    """Return the routes under the version as they are described: ``DirectRoute`` handles their requests.

    The framework compiles included routes again for each application, which takes half a second.
    """
    api, described = APIRouter(), APIRouter()
    for router in routers():
        api.include_router(router)
    described.include_router(api, prefix=VERSION)
    return described


def description() -> dict[str, object]:
    """Return the OpenAPI description of every service of this version."""
    app = FastAPI(title="Kneo", version=WIRE_VERSION)
    _route(app, metrics_too=True)
    return app.openapi()


_reloading = threading.Lock()


def reload_keys(app: FastAPI) -> None:
    """Replace the API keys of a running service by those that its settings name now.

    Sessions and streams of a removed key end. Settings that are not valid change nothing; the log has the error. Settings other
    than keys are not replaced.
    """
    service: Service = app.state.service
    with _reloading:
        before = service.keyring.names
        try:
            differs = service.keyring.replace(hash_keys(configured(from_env())))
        except KneoError as error:
            log.error("the API keys were not reloaded, the present ones stay in force: %s", error)  # noqa: TRY400
            return
        names = service.keyring.names
        facts = {"added": sorted(names - before), "removed": sorted(before - names)}
        if differs:
            log.info("the API keys were reloaded", extra=facts)
        else:
            log.warning(
                "the API keys were reloaded and are the same; this process may read a copy of the file that was changed"
            )

        def work(tx: Tx) -> None:
            _record_callers(tx, service.callers, service.settings)
            audit_log.record(tx, "api_keys.reloaded", actor=None, metadata=facts)

        try:
            service.store.transact(work)
        except KneoError as error:
            log.error("the names of the reloaded API keys could not be stored; reload again: %s", error)  # noqa: TRY400


@asynccontextmanager
async def _until_the_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    drain(app)
    service: Service | None = getattr(app.state, "service", None)
    if service is not None:
        await run_in_threadpool(service.hidden_reads.record)


def drain(app: FastAPI) -> None:
    """Respond to waiting requests and end streams, because the process is about to stop."""
    service: Service | None = getattr(app.state, "service", None)
    if service is not None:
        service.changes.stop()
