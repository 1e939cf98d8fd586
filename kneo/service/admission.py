"""What happens to a request before its body is understood: who asks, may they, do we know the question already.

The order is fixed: the key (401), the scope (403), the rate (429), the query's names (422), then the idempotency key. A
middleware of our own rather than parts of the framework, so that the order cannot depend on how it works inside.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.api.context import Principal
from kneo.clock import new_id
from kneo.digest import digest_of, digest_of_json
from kneo.errors import Invalid, KneoError
from kneo.service.auth import PRINCIPAL, Keyring, authenticate
from kneo.service.problems import RECORDED, refusal
from kneo.service.rate import Rate
from kneo.service.refusals import Refusals
from kneo.service.router import JsonResponse
from kneo.service.routing import RouteEntry, route_of, without_version
from kneo.settings import Settings
from kneo.store import idempotency
from kneo.store.engine import Store
from kneo.store.idempotency import KeyedRequest, KeyOf, Known

log = logging.getLogger("kneo.service")

MAX_KEY_CHARS = 256

REFUSED = frozenset({401, 403})
"""Refusals that are recorded whatever was asked; of what changes something, every other one is too."""


class Admission:
    """Lets requests in, and answers those it has answered before.

    Args:
        app: What answers the others.
        keyring: Who may ask for what.
        settings: How much, and for how long answers are remembered.
        store: The database.
    """

    def __init__(self, app: ASGIApp, *, keyring: Keyring, settings: Settings, store: Store) -> None:
        self.app = app
        self.keyring = keyring
        self.store = store
        self.rate = Rate(settings.http.rate_per_minute)
        self.refusals = Refusals(store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = route_of(scope)
        if operation is None or not operation.required:
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            headers = Headers(scope=scope)
            principal = authenticate(self.keyring, headers)
            scope[PRINCIPAL] = principal
            self._check(operation, principal, scope)
            key = _key(operation, principal, headers)
            if key is None:
                await self.app(scope, receive, answer.take)
            else:
                await self._once(key, scope, receive, answer)
        except KneoError as error:
            await refusal(error)(scope, receive, answer.take)
        await self._written_down(operation, scope, answer)
        await answer.let_go()

    async def _written_down(self, operation: RouteEntry, scope: Scope, answer: _Answer) -> None:
        """Record a refusal before whoever is refused hears it, unless what refused has done so."""
        if scope.get(RECORDED) or not (answer.status in REFUSED or (answer.status >= 400 and _changes(operation))):
            return
        principal = scope.get(PRINCIPAL)
        caller = principal.name if isinstance(principal, Principal) else None
        await run_in_threadpool(
            self.refusals.record, operation, scope["path"], caller, answer.status, answer.error_code()
        )

    def _check(self, operation: RouteEntry, principal: Principal, scope: Scope) -> None:
        for need in operation.required:
            principal.require(need.scope)
        self.rate.check(principal.name)
        names = {name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        unknown = sorted(names - operation.query)
        if unknown:
            raise UnknownParameters(unknown, operation.query)

    async def _once(self, key: KeyOf, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Execute a request unless its key is bound; then give its answer, or answer for what it has made."""
        body = await _body(receive)
        request = KeyedRequest(key=key, request_digest=_digest(scope, body), attempt=self._attempt())
        answer.holding = True
        known = await run_in_threadpool(self._look, request)
        while True:
            if known is not None:
                answer.replayed = True
                if known.status is not None:
                    await JsonResponse(known.response, known.status)(scope, receive, answer.take)
                    return
                request = replace(request, subject=known.subject)
            await self._execute(request, scope, _replay(body, receive), answer)
            if 200 <= answer.status < 300:
                await self._keep(request, answer)
                return
            known = await self._executed_elsewhere(request)
            if known is None:
                return
            # It was refused because another execution of the same request came first: that one's answer counts.
            answer.forget()
            scope.pop(RECORDED, None)

    async def _execute(self, request: KeyedRequest, scope: Scope, receive: Receive, answer: _Answer) -> None:
        token = idempotency.current.set(request)
        try:
            await self.app(scope, receive, answer.take)
        finally:
            idempotency.current.reset(token)

    async def _executed_elsewhere(self, request: KeyedRequest) -> Known | None:
        """Look whether another execution has bound the key meanwhile."""
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
        with self.store.read() as tx:
            return idempotency.look(tx, request)

    async def _keep(self, request: KeyedRequest, answer: _Answer) -> None:
        """Store the answer to a request that was executed."""
        try:
            response = json.loads(answer.body)
            await run_in_threadpool(self._write, request, answer.status, response)
        except (ValueError, KneoError) as error:
            # What the request has made is bound to the key, so it is not made again.
            log.warning("an answer could not be kept under its idempotency key: %s", error)

    def _write(self, request: KeyedRequest, status: int, response: dict[str, object]) -> None:
        self.store.transact(lambda tx: idempotency.keep(tx, request, status, response))


class UnknownParameters(Invalid):
    """The query names something that is not a parameter here; a typing error would otherwise be silently ignored."""

    http_status = 422
    default_code = "unknown_query_parameters"

    def __init__(self, unknown: list[str], known: frozenset[str]) -> None:
        names = ", ".join(name[:60] for name in unknown[:10])
        super().__init__(
            f"There is no query parameter {names} here.",
            hint=f"Known: {', '.join(sorted(known)) or 'none'}.",
            unknown=[name[:60] for name in unknown[:10]],
        )


class _Answer:
    """An answer on its way out. What was done is sent on at once; a refusal, or what is held, when it is let go."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.body = b""
        self.holding = False
        self.replayed = False
        """Whether it is about what an earlier request has done."""
        self._send = send
        self._held: list[Message] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.replayed and self.status < 300:
                message = {**message, "headers": [*message.get("headers", ()), (b"idempotency-replayed", b"true")]}
        if not self.holding and self.status < 400:
            await self._send(message)
            return
        self.body += message.get("body", b"")
        self._held.append(message)

    def forget(self) -> None:
        """Drop an answer that was held and will not be given."""
        self.status, self.body = 0, b""
        self._held.clear()

    async def let_go(self) -> None:
        for message in self._held:
            await self._send(message)
        self._held.clear()

    def error_code(self) -> str:
        try:
            said = json.loads(self.body)
        except ValueError:
            return "http_error"
        return str(said.get("error", "http_error"))[:60] if isinstance(said, dict) else "http_error"


def _changes(operation: RouteEntry) -> bool:
    return operation.method != "GET" and any(not need.scope.endswith(":read") for need in operation.required)


def _key(operation: RouteEntry, principal: Principal, headers: Headers) -> KeyOf | None:
    """Read the idempotency key of a request that takes one.

    Raises:
        Invalid: ``invalid_idempotency_key``.
    """
    text = headers.get("idempotency-key", "").strip()
    if operation.method != "POST" or not text:
        return None
    if len(text) > MAX_KEY_CHARS:
        msg = f"The idempotency key is {len(text)} characters long; at most {MAX_KEY_CHARS} are accepted."
        raise Invalid(msg, code="invalid_idempotency_key")
    return KeyOf(principal=principal.name, scope=operation.key_scope, key=text)


def _digest(scope: Scope, body: bytes) -> str:
    """Name a request: what is asked of what. Spacing and the order of keys in a body do not matter."""
    said: object
    try:
        said = json.loads(body) if body else None
        return digest_of_json([without_version(scope["path"]), scope["query_string"].decode("latin-1"), said])
    except (ValueError, RecursionError, KneoError):
        return digest_of(b"\n".join([scope["path"].encode(), scope["query_string"], body]))


async def _body(receive: Receive) -> bytes:
    """Read a body whole. It is bounded by whoever stands outside."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then whatever else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
