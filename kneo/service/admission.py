"""What happens to a request before its body is understood: who asks, may they, do we know the question already.

The order is fixed: the key (401), the scope (403), the rate (429), the query's names (422), then the idempotency key. A
middleware of our own rather than parts of the framework, so that the order cannot depend on how it works inside.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.digest import digest_of, digest_of_json
from kneo.errors import Conflict, Invalid, KneoError
from kneo.service.auth import PRINCIPAL, Keyring, Principal, who_asks
from kneo.service.operations import Operation, operation_of, without_version
from kneo.service.problems import RECORDED, refusal
from kneo.service.rate import Rate
from kneo.service.refusals import Refusals
from kneo.service.router import JsonAnswer
from kneo.settings import Settings
from kneo.store import idempotency
from kneo.store.engine import Store
from kneo.store.idempotency import KeyOf

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
        self.lock = timedelta(seconds=settings.http.idempotency_lock_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = operation_of(scope)
        if operation is None or not operation.required:
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            headers = Headers(scope=scope)
            principal = who_asks(self.keyring, headers)
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

    async def _written_down(self, operation: Operation, scope: Scope, answer: _Answer) -> None:
        """Record a refusal before whoever is refused hears it, unless what refused has done so."""
        if scope.get(RECORDED) or not (answer.status in REFUSED or (answer.status >= 400 and _changes(operation))):
            return
        principal = scope.get(PRINCIPAL)
        caller = principal.name if isinstance(principal, Principal) else None
        await run_in_threadpool(
            self.refusals.record, operation, scope["path"], caller, answer.status, answer.error_code()
        )

    def _check(self, operation: Operation, principal: Principal, scope: Scope) -> None:
        for need in operation.required:
            need.check(principal)
        self.rate.check(principal.name)
        names = {name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        unknown = sorted(names - operation.query)
        if unknown:
            raise UnknownParameters(unknown, operation.query)

    async def _once(self, key: KeyOf, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Do what is asked unless this key has been answered; then answer the same again."""
        body = await _body(receive)
        digest = _digest(scope, body)
        known = await run_in_threadpool(self._claim, key, digest)
        if known is not None:
            await JsonAnswer(known.response, known.status or 200, {"Idempotency-Replayed": "true"})(
                scope, receive, answer.take
            )
            return
        kept, answer.holding = False, True
        try:
            await self.app(scope, _replay(body, receive), answer.take)
            kept = await self._keep(key, answer)
        finally:
            if not kept:
                await run_in_threadpool(self._release, key)

    def _claim(self, key: KeyOf, digest: str) -> idempotency.Known | None:
        known = self.store.transact(lambda tx: idempotency.claim(tx, key, digest, lock=self.lock))
        if known is None:
            return None
        if known.request_digest != digest:
            msg = "This idempotency key was used for another request."
            raise Conflict(
                msg, code="idempotency_key_conflict", scope=key.scope, hint="Send a new key with a new request."
            )
        if known.status is None:
            msg = "The request with this idempotency key is still being answered."
            raise Conflict(msg, code="idempotency_key_in_progress", scope=key.scope, retry_after=1)
        return known

    async def _keep(self, key: KeyOf, answer: _Answer) -> bool:
        """Remember an answer; only of what was done."""
        if not 200 <= answer.status < 300:
            return False
        try:
            response = json.loads(answer.body)
            await run_in_threadpool(self._write, key, answer.status, response)
        except (ValueError, KneoError) as error:
            # It was done, so the key stays taken: asked again, the service must not do it twice.
            log.warning("an answer could not be kept under its idempotency key: %s", error)
        return True

    def _write(self, key: KeyOf, status: int, response: dict[str, object]) -> None:
        self.store.transact(lambda tx: idempotency.keep(tx, key, status, response))

    def _release(self, key: KeyOf) -> None:
        self.store.transact(lambda tx: idempotency.release(tx, key))


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
        self._send = send
        self._held: list[Message] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if not self.holding and self.status < 400:
            await self._send(message)
            return
        self.body += message.get("body", b"")
        self._held.append(message)

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


def _changes(operation: Operation) -> bool:
    return operation.method != "GET" and any(need.scope.endswith(":write") for need in operation.required)


def _key(operation: Operation, principal: Principal, headers: Headers) -> KeyOf | None:
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
