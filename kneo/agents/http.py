"""HTTP requests of tools, with checked hosts and addresses, redirects one by one, and bounded responses of tools and models."""

from __future__ import annotations

import asyncio
import functools
import importlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol, TypeAlias

import httpcore
import httpx

from kneo.agents.addresses import HostRules, Resolve, first_connection, resolve
from kneo.errors import Forbidden, KneoError

MAX_REDIRECTS = 5
MAX_BYTES = 1_000_000
"""Bytes of a response that are read; the rest is cut."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TO_GET = frozenset({301, 302, 303})
"""Redirects after which a request is a GET without a body."""

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8000}")
_METHOD = re.compile(r"[A-Z]{1,20}")
_OWN_HEADERS = re.compile(
    "accept-encoding|connection|content-length|expect|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade",
    re.IGNORECASE,
)
"""Headers that only the client itself writes."""


class HttpFailed(KneoError):
    """A request that got no usable response."""

    default_code = "http_failed"


@dataclass(frozen=True, kw_only=True)
class WebRequest:
    """A request. ``secret_headers`` go to the origin of ``url`` alone, and never to the target of a redirect elsewhere."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class WebResponse:
    """A response. ``is_cut``: the body was longer than what was read."""

    status: int
    media_type: str
    body: bytes = field(repr=False)
    is_cut: bool = False


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connections of one request: the name is resolved once, and a checked address is connected to.

    Args:
        rules: The hosts that may be reached.
        resolver: The resolver of names.
        network: What connects to an address.
    """

    def __init__(
        self,
        rules: HostRules,
        resolver: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._rules, self._resolve = rules, resolver
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(  # the signature of httpcore
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._rules.addresses(host, port, self._resolve)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None
        return await first_connection(
            addresses,
            lambda address: self._network.connect_tcp(address, port, timeout, local_address, socket_options),
            (httpcore.ConnectError, httpcore.ConnectTimeout),
        )

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        msg = f"Tools connect to hosts, not to the socket {path}."
        raise Forbidden(msg, code="address_denied")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class HttpClient:
    """Makes requests under the rules of one agent. Each has connections of its own; none is kept.

    Args:
        rules: The hosts that may be reached.
        max_bytes: Bytes of a response that are read.
        resolver: The resolver of names.
        network: What connects to an address.
        ssl_context: The authorities of certificates; default: those of the system's bundle.
    """

    def __init__(
        self,
        rules: HostRules,
        *,
        max_bytes: int = MAX_BYTES,
        resolver: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules, self._max_bytes = rules, max_bytes
        self._resolve, self._network, self._ssl = resolver, network, ssl_context

    async def send(self, request: WebRequest, seconds: float) -> WebResponse:
        """Send a request, follow its redirects, and read the response up to the bound.

        Raises:
            Forbidden: ``url_denied``, ``domain_denied``, ``address_denied`` or ``header_denied``.
            HttpFailed: no response came in time, or none that can be read.
        """
        where = "the server"
        try:
            async with (
                asyncio.timeout(seconds),
                httpcore.AsyncConnectionPool(
                    ssl_context=self._ssl or _certificates(),
                    max_connections=MAX_REDIRECTS + 1,
                    network_backend=CheckedNetwork(self._rules, self._resolve, self._network),
                ) as pool,
            ):
                for _ in range(MAX_REDIRECTS + 1):
                    url = self._rules.check_url(request.url)
                    where = f"{url.scheme}://{url.netloc.decode()}{url.path}"
                    response = await self._exchange(pool, request, url)
                    if isinstance(response, WebResponse):
                        return response
                    request = response
        except TimeoutError:
            msg = f"{request.method} {where} took longer than {seconds:g} seconds."
            raise HttpFailed(msg) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            msg = f"{request.method} {where} failed: {type(error).__name__}: {error}"
            raise HttpFailed(msg) from None
        msg = f"{where} redirects more than {MAX_REDIRECTS} times."
        raise HttpFailed(msg)

    async def _exchange(
        self, pool: httpcore.AsyncConnectionPool, request: WebRequest, url: httpx.URL
    ) -> WebResponse | WebRequest:
        """Return the response, or the request that a redirect leads to."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with pool.stream(
            _method(request.method), target, headers=_headers(request, url), content=request.body
        ) as got:
            headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in got.headers}
            location = headers.get("location")
            if got.status in _REDIRECTS and location:
                return _redirected(request, url, got.status, location)
            encoding = headers.get("content-encoding", "identity").strip().lower()
            if encoding not in {"", "identity"}:
                msg = f"{url.host} answers with the encoding {encoding!r}, which was not offered."
                raise HttpFailed(msg)
            body = bytearray()
            async for part in got.aiter_stream():
                body += part
                if len(body) > self._max_bytes:
                    break
            media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            kept = bytes(body[: self._max_bytes])
            return WebResponse(status=got.status, media_type=media_type, body=kept, is_cut=len(body) > self._max_bytes)


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _method(method: str) -> str:
    if not _METHOD.fullmatch(method) or method in {"CONNECT", "TRACE"}:
        msg = f"{method[:30]!r} is not a method for tools."
        raise Forbidden(msg, code="header_denied")
    return method


def _headers(request: WebRequest, url: httpx.URL) -> list[tuple[bytes, bytes]]:
    """Return a request's headers.

    Raises:
        Forbidden: ``header_denied``: a header that only the client writes, or a value with control characters.
    """
    own = [(b"Host", url.netloc), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"kneo")]
    given = []
    for name, value in {**request.headers, **request.secret_headers}.items():
        if not _HEADER.fullmatch(name) or _OWN_HEADERS.fullmatch(name):
            msg = f"A tool may not write the header {name[:100]!r}."
            raise Forbidden(msg, code="header_denied")
        if not _HEADER_VALUE.fullmatch(value):
            msg = f"The value of the header {name} has characters that no header may have, or is too long."
            raise Forbidden(msg, code="header_denied")
        given.append((name.encode(), value.encode("latin-1")))
    return [*own, *given]


def _redirected(request: WebRequest, url: httpx.URL, status: int, location: str) -> WebRequest:
    """Return the request to the target of a redirect; secrets stay with the origin that they are for."""
    try:
        target = url.join(location)
    except httpx.InvalidURL:
        msg = f"{url.host} redirects to an address that cannot be read."
        raise HttpFailed(msg) from None
    leaves = (target.scheme, target.raw_host, target.port) != (url.scheme, url.raw_host, url.port)
    headers = request.headers
    if leaves:
        headers = {name: value for name, value in headers.items() if name.lower() not in {"authorization", "cookie"}}
    moved = replace(request, url=str(target), headers=headers, secret_headers={} if leaves else request.secret_headers)
    if status in _TO_GET and request.method not in {"GET", "HEAD"}:
        kept = {name: value for name, value in headers.items() if not name.lower().startswith("content-")}
        moved = replace(moved, method="GET", body=None, headers=kept)
    return moved


PLAIN = frozenset({"", "identity"})
"""Encodings of a body that is as long as it arrives."""


class ReplyTooLarge(Exception):
    """A reply has more bytes than are read, or its size is hidden by a compression that was not requested."""


class ByteStream(Protocol):
    """The body of a response."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class _Request(Protocol):
    @property
    def headers(self) -> MutableMapping[str, str]: ...


class _Response(_Request, Protocol):
    stream: Any


Hook: TypeAlias = Callable[[Any], Awaitable[None]]


def limit_replies(max_bytes: int) -> dict[str, list[Hook]]:
    """Return the event hooks of an HTTP client, of ``httpx`` or ``httpx2``, that bound each response.

    Raises:
        ReplyTooLarge: from the hooks, when a response arrives or while its body is read.
    """

    async def ask_uncompressed(request: _Request) -> None:
        request.headers["Accept-Encoding"] = "identity"

    async def bound(response: _Response) -> None:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in PLAIN:
            msg = f"compressed reply ({encoding[:20]})"
            raise ReplyTooLarge(msg)
        library = type(response).__module__.partition(".")[0]
        response.stream = _bounded_stream(library)(response.stream, max_bytes)

    return {"request": [ask_uncompressed], "response": [bound]}


@cache
def _bounded_stream(library: str) -> Callable[[ByteStream, int], ByteStream]:
    """Return the class of bounded bodies for an HTTP library, which accepts subclasses of its own class only."""
    base: Any = importlib.import_module(library).AsyncByteStream

    class BoundedStream(base):  # type: ignore[misc]  # one of two libraries, each with its own class
        def __init__(self, body: ByteStream, max_bytes: int) -> None:
            self._body, self._left, self._max_bytes = body, max_bytes, max_bytes

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._body:
                self._left -= len(part)
                if self._left < 0:
                    msg = f"reply above {self._max_bytes} bytes"
                    raise ReplyTooLarge(msg)
                yield part

        async def aclose(self) -> None:
            await self._body.aclose()

    return BoundedStream
