"""Limits of requests: their sizes, under the published names too, the bytes of a body, and the rates of callers and environments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from threading import Lock

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo import registry
from kneo.clock import monotonic
from kneo.errors import Invalid, QuotaExceeded, Transient
from kneo.service.problems import too_large
from kneo.settings import Limits
from kneo.store import usage
from kneo.store.engine import Store, Tx


@dataclass(frozen=True)
class RequestLimits:
    """Limits on the parts of a request, in place of those of the settings."""

    max_body_bytes: int = Limits.body_bytes
    max_input_chars: int = Limits.input_chars
    max_human_content_chars: int = Limits.human_content_chars
    max_inline_spec_bytes: int = Limits.inline_spec_bytes
    max_overrides_bytes: int = Limits.overrides_bytes
    max_metadata_bytes: int = Limits.metadata_bytes
    max_list_items: int = Limits.page_items
    max_path_chars: int = Limits.path_chars

    def as_limits(self) -> Limits:
        """Return the limits as a setting.

        Raises:
            Invalid: a limit is not positive.
        """
        for name, value in vars(self).items():
            if value <= 0:
                msg = f"{name} must be positive, not {value}."
                raise Invalid(msg, code="invalid_setting")
        return Limits(
            body_bytes=self.max_body_bytes,
            input_chars=self.max_input_chars,
            human_content_chars=self.max_human_content_chars,
            inline_spec_bytes=self.max_inline_spec_bytes,
            overrides_bytes=self.max_overrides_bytes,
            metadata_bytes=self.max_metadata_bytes,
            path_chars=self.max_path_chars,
            page_items=self.max_list_items,
        )


DISCARDED_BYTES = 16 * 1024 * 1024
"""Bytes of a body above the limit that are read and discarded before the answer.

A client, or a proxy, that sends a body before it reads would not read the answer: a connection that is closed with unread input is reset.
"""


class BodyLimit:
    """Counts the bytes of a request's body and answers 413 when there are too many, after reading the rest of them."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            # A client that waits for the permission to send a body has sent none.
            if not any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]):
                await _discard_body(receive)
            await too_large(self.max_bytes)(scope, receive, send)
            return
        counted = 0
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def counting() -> Message:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > self.max_bytes:
                if message.get("more_body", False):
                    await _discard_body(receive)
                raise HTTPException(413)
            return message

        try:
            await self.app(scope, counting, sending)
        except HTTPException as error:
            # Middleware that reads the body itself does not handle the exception.
            if error.status_code != 413 or begun:
                raise
            await too_large(self.max_bytes)(scope, receive, send)


async def _discard_body(receive: Receive) -> None:
    """Read the rest of a body, up to ``DISCARDED_BYTES``; the server's time limit of a request holds."""
    left = DISCARDED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def peer_address(request: HTTPConnection) -> str:
    """Return the address of the caller; empty where the server does not know it."""
    return request.client.host if request.client else ""


def network_of(address: str) -> str:
    """Return what rates count for an address: itself, or the /64 network of an IPv6 address, whose owner has all of it."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


MAX_CALLERS = 10_000
"""Callers that a rate remembers at once. Keys are few; there are more callers only where addresses are counted."""


class TooMany(Transient):
    """A caller sends more requests than the limit; the request itself is valid."""

    http_status = 429
    default_code = "rate_limited"


class Rate:
    """A rate limit for each caller, as a token bucket.

    Args:
        per_minute: Requests per minute; 0 sets no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = Lock()

    def take(self, caller: str) -> float:
        """Count a request; return 0, or the seconds after which the caller may send it."""
        if not self.per_minute:
            return 0.0
        now = monotonic()
        per_second = self.per_minute / 60
        with self._lock:
            left, since = self._left.get(caller, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - since) * per_second)
            allowed = left >= 1
            self._left[caller] = (left - 1 if allowed else left, now)
            if len(self._left) > MAX_CALLERS:
                self._left.pop(next(iter(self._left)))
        return 0.0 if allowed else (1 - left) / per_second

    def check(self, caller: str, message: str = "") -> None:
        """Count a request.

        Args:
            caller: The caller.
            message: The message of the refusal; by default it states the limit.

        Raises:
            TooMany: the caller has reached the limit; ``retry_after`` is in the details.
        """
        wait = self.take(caller)
        seconds = max(1, round(wait + 0.5))
        if wait and message:
            raise TooMany(message, retry_after=seconds)
        if wait:
            msg = f"{caller} may send {self.per_minute} requests in a minute."
            raise TooMany(msg, retry_after=seconds)


class CountedRequest:
    """One request, which counts once for an environment, whatever operations it calls.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counted: set[str] = set()

    def limits(self, tx: Tx) -> Mapping[str, int]:
        """Return the quotas of the environments that have one."""
        return registry.request_limits(tx)

    def count(self, environment: str, limit: int) -> None:
        """Count the request. A crash of the machine may lose the count of its last moment.

        Raises:
            QuotaExceeded: as many requests were counted in this minute.
        """
        if environment in self._counted:
            return
        wait = self._store.transact(
            lambda tx: usage.admit_request(tx, environment, usage.SERVICE, requests=limit, tokens=None), durable=False
        )
        if wait is not None:
            msg = f"{environment} had {limit} requests in this minute, which is the quota requests_per_minute of the environment."
            raise QuotaExceeded(
                msg,
                quota="requests_per_minute",
                limit=limit,
                environment=environment,
                # Refused models spread over the minutes to come; callers of the API may all try in the next one.
                retry_after=math.ceil(wait.total_seconds() % 60) or 60,
                hint="Try again in the next minute.",
            )
        self._counted.add(environment)
