"""MCP over HTTP: checked addresses, bounded responses, and failures that end one request only."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
from mcp.client import Transport
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR

from kneo.agents.addresses import HostRules, Resolve, resolve
from kneo.agents.mcp.failures import McpRefused
from kneo.agents.mcp.oauth import ClientCredentials, ConnectionTokens
from kneo.errors import Invalid

S = TypeVar("S")

READ_SECONDS = 300.0
"""Time without data on an open response, where the declaration has no ``sse_read_timeout``."""

NOT_SENT = -32_050
SESSION_ENDED = -32_051
"""Codes of responses that the transport makes itself."""

_SESSION = "mcp-session-id"


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The certificates of a connection. ``client_key`` is the key itself, where it is a secret and not a file."""

    verify: bool = True
    ca_bundle: str | None = None
    client_cert: str | None = None
    client_key_file: str | None = None
    client_key: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """Return the context.

        Raises:
            Invalid: ``mcp_tls_invalid``: a file cannot be read or used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_bundle)
            if not self.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if self.client_cert is not None:
                self._load(context, self.client_cert)
        except OSError as error:
            msg = f"The certificates of the MCP server cannot be used: {error.strerror or type(error).__name__}."
            raise Invalid(
                msg, code="mcp_tls_invalid", hint="Check ca_bundle, client_cert and the client key."
            ) from None
        return context

    def _load(self, context: ssl.SSLContext, certificate: str) -> None:
        if self.client_key is None:
            context.load_cert_chain(certificate, self.client_key_file, password="")
            return
        with tempfile.NamedTemporaryFile("w") as file:  # mode 0600; OpenSSL reads keys from files only
            file.write(self.client_key)
            file.flush()
            context.load_cert_chain(certificate, file.name, password="")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address of a server, and what is sent with each request.

    Attributes:
        is_sse: Whether the server uses the older transport: ``url`` is one stream of events, and messages go to an address
            that the server names in it.
        message_url: That address without its query, where it is declared; the server can then name no other.
    """

    url: str
    is_sse: bool = False
    message_url: str | None = None
    headers: Mapping[str, str] = field(repr=False)
    credentials: ClientCredentials | None = None
    tls: Tls
    hosts: HostRules
    max_message_bytes: int
    connect_seconds: float
    read_seconds: float = READ_SECONDS


class HttpTransport:
    """The transport of one connection over HTTP."""

    def __init__(self, endpoint: Endpoint, resolver: Resolve = resolve) -> None:
        self._endpoint = endpoint
        self._network = _CheckedNetwork(endpoint, resolver)
        self._tokens = ConnectionTokens()

    def streams(self) -> Transport:
        seconds, credentials = self._endpoint.connect_seconds, self._endpoint.credentials
        client = httpx2.AsyncClient(
            transport=self._network,
            headers={**self._endpoint.headers, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(seconds, read=self._endpoint.read_seconds),
            trust_env=False,
            auth=credentials.flow(self._endpoint.url, self._tokens) if credentials is not None else None,
        )
        if self._endpoint.is_sse:
            # The SDK bounds each event by itself here, at 1 MiB; the stream has the events of the whole connection.
            seconds = self._endpoint.read_seconds
            return sse_client(
                self._endpoint.url, sse_read_timeout=seconds, httpx_client_factory=lambda *_, **__: client
            )
        limit = self._endpoint.max_message_bytes
        return _with(client, streamable_http_client(self._endpoint.url, http_client=client, max_sse_event_size=limit))

    def has_ended(self) -> bool:
        return self._network.session_ended

    def last_words(self) -> str:
        return ""

    def secrets(self) -> Iterable[str]:
        return self._tokens.values


@contextlib.asynccontextmanager
async def _with(client: httpx2.AsyncClient, transport: AbstractAsyncContextManager[S]) -> AsyncGenerator[S]:
    async with client, transport as streams:
        yield streams


class _CheckedNetwork(httpx2.AsyncBaseTransport):
    """Requests to addresses that were checked; their failures are responses, as an exception would end the connection."""

    def __init__(self, endpoint: Endpoint, resolver: Resolve) -> None:
        self._endpoint, self._resolver = endpoint, resolver
        self._http = httpx2.AsyncHTTPTransport(verify=endpoint.tls.context(), trust_env=False)
        self.session_ended = False
        self._read_by_flow = {404} if endpoint.credentials is None else {401, 403, 404}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        hosts = self._endpoint.hosts
        hosts.check_url(str(request.url))
        self._check_message_url(request)
        host, port = (
            request.url.raw_host.decode("ascii"),
            request.url.port or (443 if request.url.scheme == "https" else 80),
        )
        try:
            addresses = await hosts.addresses(host, port, self._resolver)
            response = await self._first(request, host, addresses)
        except (OSError, httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return _failed(request, NOT_SENT, f"{host} cannot be reached: {error or type(error).__name__}")
        except httpx2.TransportError as error:
            return _failed(request, CONNECTION_CLOSED, f"{host} did not answer: {error or type(error).__name__}")
        return await self._checked(request, response)

    def _check_message_url(self, request: httpx2.Request) -> None:
        declared = self._endpoint.message_url
        if request.method == "POST" and declared is not None and str(request.url.copy_with(query=None)) != declared:
            self.session_ended = True
            msg = "The MCP server asks for messages at an address other than its message_url."
            raise McpRefused(msg, code="mcp_host_denied")

    async def _first(self, request: httpx2.Request, host: str, addresses: tuple[str, ...]) -> httpx2.Response:
        """Send the request to the first address that accepts a connection."""
        for number, address in enumerate(addresses, 1):
            sent = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._http.handle_async_request(sent)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise AssertionError(host)  # at least one address was checked

    async def _checked(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        encoding = response.headers.get("content-encoding", "identity").lower()
        is_json = response.headers.get("content-type", "").lower().startswith("application/json")
        if encoding != "identity":
            problem, code = f"the response is encoded as {encoding}, which was not asked for", INTERNAL_ERROR
        elif response.status_code == 404 and _SESSION in request.headers:
            self.session_ended = True
            problem, code = "the server has ended the session", SESSION_ENDED
        elif response.status_code >= 400 and response.status_code not in self._read_by_flow and not is_json:
            problem, code = f"HTTP status {response.status_code}", INTERNAL_ERROR
        else:
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            if not (self._endpoint.is_sse and request.method == "GET"):
                response.stream = _Bounded(response, response.stream, self._endpoint.max_message_bytes)
            return response
        await response.aclose()
        return _failed(request, code, problem)

    async def aclose(self) -> None:
        await self._http.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """The body of a response; one that is too long or breaks off fails in the way that the SDK expects."""

    def __init__(self, response: httpx2.Response, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._is_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        try:
            async for chunk in self._stream:
                count += len(chunk)
                if count > self._limit:
                    raise self._failure(f"the response is above {self._limit} bytes")
                yield chunk
        except httpx2.TransportError as error:
            raise self._failure(f"the response broke off: {error or type(error).__name__}") from None

    def _failure(self, text: str) -> Exception:
        return httpx2.SSEError(text) if self._is_events else httpx2.StreamError(text)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _failed(request: httpx2.Request, code: int, message: str) -> httpx2.Response:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return httpx2.Response(502, json=error, request=request)
