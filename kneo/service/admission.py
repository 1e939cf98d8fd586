"""Admission of requests, before their bodies are parsed: authentication, authorization, rate limit, idempotency.

The order is fixed: the key or token (401), the scope (403), the rate (429), the names of the query (422), then the idempotency key. Admission
is middleware rather than dependencies of the framework, so that the order does not rest on how the framework resolves them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.api.operation import Principal
from kneo.clock import new_id
from kneo.digest import digest_of, digest_of_json
from kneo.errors import Invalid, KneoError
from kneo.json_text import parse_json
from kneo.redaction import redact_text
from kneo.service.auth import PRINCIPAL, credential_of
from kneo.service.callers import Callers
from kneo.service.limits import Rate
from kneo.service.problems import RECORDED, refusal
from kneo.service.routing import JsonResponse, RouteEntry, route_of, without_version
from kneo.service.sign_in_providers import challenge
from kneo.settings import Settings
from kneo.store import audit, idempotency
from kneo.store.engine import Store
from kneo.store.idempotency import KeyedRequest, KeyOf, Known, SecretShownOnce

log = logging.getLogger("kneo.service")

MAX_KEY_CHARS = 256

REFUSED = frozenset({401, 403})
"""Statuses that are recorded for every operation. Of an operation that changes something, every refusal is recorded."""


PER_MINUTE = 60
"""Refusals of one caller that a process records per minute. The access log has all of them."""


class Refusals:
    """The audit record of refused requests, bounded, because a refused caller pays nothing for a request."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rate = Rate(PER_MINUTE)

    def record(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        caller: str | None,
        status: int,
        code: str,
        scopes: Sequence[str],
    ) -> None:
        """Record a refusal, unless the caller has reached ``PER_MINUTE``."""
        if self._rate.take(caller or "") > 0:
            return
        facts = {
            "operation": operation,
            "method": method,
            "path": redact_text(path[:500]),
            "status": status,
            "error": code,
            "required_scope": list(scopes),
        }
        try:
            with self.store.write() as tx:
                audit.record(tx, "request.refused", actor=caller, metadata=facts)
        except KneoError as error:
            # The caller gets the refusal either way; the operator finds in the log that it is not recorded.
            log.warning("a refusal could not be recorded: %s", error)


class Admission:
    """Middleware that admits requests, and replays the responses of requests with a known idempotency key.

    Args:
        app: The application behind it.
        callers: The callers that are admitted.
        settings: The rate limit, and the retention of idempotency keys.
        store: The database.
    """

    def __init__(self, app: ASGIApp, *, callers: Callers, settings: Settings, store: Store) -> None:
        self.app = app
        self.callers = callers
        self.settings = settings
        self.store = store
        self.rate = Rate(settings.http.rate_per_minute)
        self.refusals = Refusals(store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = route_of(scope)
        if operation is None or not operation.required:
            await self.app(scope, receive, send)
            return
        response = _Outgoing(send)
        try:
            headers, version = Headers(scope=scope), self.callers.keyring.version
            principal = await self.callers.authenticate(headers)
            scope[PRINCIPAL] = principal
            self._check(operation, principal, scope)
            key = _key(operation, principal, headers)
            if key is None:
                response.is_revoked = partial(self._is_revoked, version, operation, principal, headers)
                await self._answer(scope, receive, response)
            else:
                await self._once(operation, key, scope, receive, response)
        except KneoError as error:
            await refusal(error, challenge(scope, self.settings))(scope, receive, response.take)
        await self._record_refusal(operation, scope, response)
        await response.release()

    async def _answer(self, scope: Scope, receive: Receive, response: _Outgoing) -> None:
        try:
            await self.app(scope, receive, response.take)
        except* _Revoked:
            log.info("a stream has ended, because its API key was removed or changed, or its token has expired")

    def _is_revoked(self, version: int, operation: RouteEntry, principal: Principal, headers: Headers) -> bool:
        """Return whether the caller's token has expired, or the keys were replaced and do not admit the request any more."""
        if principal.expires_at is not None:
            return principal.expires_at <= self.store.clock.now()
        if self.callers.keyring.version == version:
            return False
        now = self.callers.keyring.find(credential_of(headers))
        if now is None:
            return True
        return now.name != principal.name or not all(now.may(need.scope) for need in operation.required)

    async def _record_refusal(self, operation: RouteEntry, scope: Scope, response: _Outgoing) -> None:
        """Record a refusal before it is sent, unless the operation that refused has recorded it."""
        if scope.get(RECORDED) or not (response.status in REFUSED or (response.status >= 400 and _changes(operation))):
            return
        principal = scope.get(PRINCIPAL)
        caller = principal.name if isinstance(principal, Principal) else None
        record = partial(
            self.refusals.record,
            caller=caller,
            status=response.status,
            code=response.error_code(),
            scopes=[need.scope for need in operation.required],
        )
        await run_in_threadpool(record, operation.id, operation.method, scope["path"])

    def _check(self, operation: RouteEntry, principal: Principal, scope: Scope) -> None:
        for need in operation.required:
            principal.require(need.scope)
        self.rate.check(principal.name)
        names = {name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        unknown = sorted(names - operation.query)
        if unknown:
            raise UnknownParameters(unknown, operation.query)

    async def _once(
        self, operation: RouteEntry, key: KeyOf, scope: Scope, receive: Receive, response: _Outgoing
    ) -> None:
        """Execute a request unless its key is bound; otherwise replay its response, or respond with what it created.

        Raises:
            Conflict: ``secret_shown_once``: the key is bound, and the response held a secret.
        """
        body = await read_body(receive)
        request = KeyedRequest(key=key, request_digest=_digest(scope, body), attempt=self._attempt())
        response.holding = True
        known = await run_in_threadpool(self._look, request)
        while True:
            if known is not None:
                if operation.shows_secret:
                    raise SecretShownOnce(key)
                response.replayed = True
                if known.status is not None:
                    await JsonResponse(known.response, known.status)(scope, receive, response.take)
                    return
                request = replace(request, subject=known.subject)
            await self._execute(request, scope, replay(body, receive), response)
            if 200 <= response.status < 300:
                if not (operation.shows_secret or operation.is_live):
                    await self._keep(request, response)
                return
            known = await self._other_execution(request)
            if known is None:
                return
            # Another execution of the same request came first and made this one fail; the other response counts.
            response.forget()
            scope.pop(RECORDED, None)

    async def _execute(self, request: KeyedRequest, scope: Scope, receive: Receive, response: _Outgoing) -> None:
        token = idempotency.current.set(request)
        try:
            await self.app(scope, receive, response.take)
        finally:
            idempotency.current.reset(token)

    async def _other_execution(self, request: KeyedRequest) -> Known | None:
        """Return the key as another execution has bound it meanwhile; ``None`` where none has."""
        if request.subject is not None:
            return None
        try:
            known = await run_in_threadpool(self._look, request)
        except KneoError:
            return None
        return known if known is not None and known.attempt != request.attempt else None

    def _attempt(self) -> str:
        return new_id("req", self.store.clock.now())

    def _look(self, request: KeyedRequest) -> Known | None:
        with self.store.look() as tx:
            return idempotency.look(tx, request)

    async def _keep(self, request: KeyedRequest, response: _Outgoing) -> None:
        """Store the response to an executed request under its key."""
        try:
            body = json.loads(response.body)
            await run_in_threadpool(self._write, request, response.status, body)
        except (ValueError, KneoError) as error:
            # The object that the request created is bound to the key, so a retry does not create it again.
            log.warning("a response could not be stored under its idempotency key: %s", error)

    def _write(self, request: KeyedRequest, status: int, response: dict[str, object]) -> None:
        self.store.execute(lambda tx: idempotency.keep(tx, request, status, response))


class UnknownParameters(Invalid):
    """The query has a parameter that the operation does not know; a typing error would otherwise be silently ignored."""

    http_status = 422
    default_code = "unknown_query_parameters"

    def __init__(self, unknown: list[str], known: frozenset[str]) -> None:
        names = ", ".join(name[:60] for name in unknown[:10])
        super().__init__(
            f"There is no query parameter {names} here.",
            hint=f"Known: {', '.join(sorted(known)) or 'none'}.",
            unknown=[name[:60] for name in unknown[:10]],
        )


class _Revoked(Exception):
    """The key of a stream was removed."""


def _never() -> bool:
    return False


class _Outgoing:
    """A response on its way out. A success is sent at once; a refusal, or a response that is held, on ``release``.

    Attributes:
        is_revoked: Returns whether the caller's key lost the request. A response that is sent in parts, a stream, then ends
            before its next part, at the latest with the next heartbeat.
    """

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.body = b""
        self.holding = False
        self.replayed = False
        """Whether the response is about the work of an earlier request."""
        self.is_revoked: Callable[[], bool] = _never
        self._send = send
        self._held: list[Message] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.replayed and self.status < 300:
                message = {**message, "headers": [*message.get("headers", ()), (b"idempotency-replayed", b"true")]}
        if not self.holding and self.status < 400:
            if message.get("more_body", False) and self.is_revoked():
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _Revoked
            await self._send(message)
            return
        self.body += message.get("body", b"")
        self._held.append(message)

    def forget(self) -> None:
        """Drop a held response."""
        self.status, self.body = 0, b""
        self._held.clear()

    async def release(self) -> None:
        for message in self._held:
            await self._send(message)
        self._held.clear()

    def error_code(self) -> str:
        try:
            data = json.loads(self.body)
        except ValueError:
            return "http_error"
        return str(data.get("error", "http_error"))[:60] if isinstance(data, dict) else "http_error"


def _changes(operation: RouteEntry) -> bool:
    return operation.method != "GET" and any(not need.scope.endswith(":read") for need in operation.required)


def _key(operation: RouteEntry, principal: Principal, headers: Headers) -> KeyOf | None:
    """Read the idempotency key of a request that takes one.

    Raises:
        Invalid: ``invalid_idempotency_key``.
    """
    text = headers.get("idempotency-key", "").strip()
    if not operation.takes_key or not text:
        return None
    if len(text) > MAX_KEY_CHARS:
        msg = f"The idempotency key is {len(text)} characters long; at most {MAX_KEY_CHARS} are accepted."
        raise Invalid(msg, code="invalid_idempotency_key")
    return KeyOf(principal=principal.name, scope=operation.key_scope, key=text)


def _digest(scope: Scope, body: bytes) -> str:
    """Return the digest of a request. Spacing and the order of keys in the body do not matter."""
    data: object
    try:
        data = parse_json(body) if body else None
        return digest_of_json([without_version(scope["path"]), scope["query_string"].decode("latin-1"), data])
    except (ValueError, KneoError):
        return digest_of(b"\n".join([scope["path"].encode(), scope["query_string"], body]))


async def read_body(receive: Receive) -> bytes:
    """Read a whole body. ``BodyLimit`` bounds it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that repeats a body that was read, then continues with further messages."""
    is_sent = False

    async def again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
