"""The outermost middleware: request ids, security headers, the access log, metrics of requests, and the response to a crash."""

from __future__ import annotations

import logging
import random
import re

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.api.operation import Principal
from kneo.clock import monotonic
from kneo.redaction import redact_text
from kneo.service.auth import PRINCIPAL
from kneo.service.problems import crash
from kneo.service.routing import RouteEntry, RouteTable, path_of
from kneo.telemetry import Span, log_fields, span

log = logging.getLogger("kneo_serv.service")
"""The published name of the logger, which log filters use."""

_ids = random.Random()  # noqa: S311 - request ids name requests in logs; they may be guessed
"""A generator that makes no system call per request."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""The request ids of callers that are accepted. Others are replaced, because ids end up in logs and headers."""

CAREFUL = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
FOR_JSON = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

_TOKEN = re.compile(r"^(/h/|/console/link/).+")
"""The address of a one-time link, which a reader of the log could use."""

_LONG = re.compile(r"[A-Za-z0-9_-]{43,}")
"""A text that may be such a token (32 bytes in base64url), in an address that is none of this service."""

_NAMED = re.compile(r"/(runs|human-tasks|continuations)/([A-Za-z0-9_-]{1,80})")


BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Seconds. Synchronous runs take up to two minutes."""


class RequestMetrics:
    """Prometheus counters of requests.

    Args:
        registry: The metrics of this application.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["method", "operation"]
        self._requests = Counter("kneo_http_requests", "Requests answered.", [*labels, "status"], registry=registry)
        self._seconds = Histogram(
            "kneo_http_request_duration_seconds", "Duration of requests.", labels, buckets=BUCKETS, registry=registry
        )

    def count(self, operation: RouteEntry | None, method: str, status: int, seconds: float) -> None:
        """Count a request. Requests without a route share one name, so that callers cannot create names."""
        name = operation.id if operation is not None else "unknown"
        verb = method if operation is not None else "OTHER"
        self._requests.labels(verb, name, str(status)).inc()
        self._seconds.labels(verb, name).observe(seconds)


class AccessLog:
    """The outermost middleware.

    Args:
        app: The application behind it.
        routes: The routes, to name requests by.
        metrics: Counts the requests.
        logged: Whether requests are logged.
    """

    def __init__(self, app: ASGIApp, *, routes: RouteTable, metrics: RequestMetrics, logged: bool) -> None:
        self.app = app
        self.routes = routes
        self.metrics = metrics
        self.logged = logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else f"{_ids.getrandbits(128):032x}"
        scope["kneo.request_id"] = request_id
        status, started = 0, monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(message["headers"], request_id)
            await send(message)

        failed: Exception | None = None
        # Read now: a mounted application changes the scope.
        operation = self.routes.note(scope)
        path = _without_token(scope, operation)
        traceparent = _trace_id(headers.get("traceparent", ""))
        with (
            log_fields(request_id=request_id, trace_id=traceparent),
            span(operation.id if operation else scope["method"], kind="server", headers=headers) as traced,
        ):
            try:
                await self.app(scope, receive, sending)
            except Exception as error:
                failed = error
                log.exception("a request failed", extra={"event": "http_request_failed"})
                if not status:
                    await crash()(scope, receive, sending)
            _note(traced, scope, operation, status, failed)
        seconds = monotonic() - started
        self.metrics.count(operation, scope["method"], status, seconds)
        if self.logged:
            _log(scope, path, headers, request_id, status, seconds, failed, traced.trace_id or traceparent)


def _note(traced: Span, scope: Scope, operation: RouteEntry | None, status: int, failed: Exception | None) -> None:
    traced.note(
        http_request_method=scope["method"],
        http_route=operation.template if operation else None,
        http_response_status__code=status,
        kneo_request__id=scope["kneo.request_id"],
        kneo_actor=principal.name if isinstance(principal := scope.get(PRINCIPAL), Principal) else None,
    )
    if status >= 500:
        traced.failed(type(failed).__name__ if failed is not None else str(status))


def _dress(headers: list[tuple[bytes, bytes]], request_id: str) -> None:
    there = dict(headers)
    headers.append((b"x-request-id", request_id.encode()))
    also = FOR_JSON if there.get(b"content-type", b"").startswith(b"application/json") else ()
    headers.extend(header for header in (*CAREFUL, *also) if header[0] not in there)


def _log(
    scope: Scope,
    path: str,
    headers: Headers,
    request_id: str,
    status: int,
    seconds: float,
    failed: Exception | None,
    trace_id: str | None,
) -> None:
    named = dict(_NAMED.findall(scope["path"]))
    principal = scope.get(PRINCIPAL)
    client = scope.get("client")
    facts = {
        "event": "http_request",
        "request_id": request_id,
        "method": scope["method"],
        "path": redact_text(path[:500]),
        "status_code": status,
        "duration_ms": round(seconds * 1000, 3),
        "client_ip": client[0] if client else None,
        "user_agent": redact_text(headers.get("user-agent", "")[:200]),
        "actor": principal.name if isinstance(principal, Principal) else None,
        "run_id": named.get("runs"),
        "continuation_id": named.get("human-tasks") or named.get("continuations"),
        "trace_id": trace_id,
        "error": type(failed).__name__ if failed is not None else None,
    }
    log.info("%s %s %s", scope["method"], facts["path"], status, extra=facts)


def _without_token(scope: Scope, operation: RouteEntry | None) -> str:
    """Return the path of a request, without the token of a one-time link, also where the address is not quite right."""
    path = path_of(scope)
    prefix = str(scope["path"]).removesuffix(path)
    path = _TOKEN.sub(r"\1[REDACTED]", path)
    return prefix + (path if operation is not None else _LONG.sub("[REDACTED]", path))


def _trace_id(traceparent: str) -> str | None:
    """Read the trace's id from a W3C ``traceparent``."""
    match = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", traceparent)
    return match[1] if match else None
