"""MCP over HTTP: checked addresses, bounded responses, failures that end one request only, and OAuth client credentials."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import httpcore2
import httpx2
from mcp.client import Transport
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR

from kneo.agents.addresses import HostRules, Resolve, first_connection, resolve
from kneo.agents.tools.mcp.failures import McpRefused
from kneo.errors import Invalid

KEPT_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class ClientCredentials:
    """The credentials of a client at one authorization server, the only one that gets them."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)

    def flow(self, url: str, tokens: ConnectionTokens) -> httpx2.Auth:
        """Return the flow that requests a token when the server at a URL answers 401, and sends it from then on."""
        return ClientCredentialsOAuthProvider(
            server_url=url,
            storage=tokens,
            client_id=self.client_id,
            client_secret=self.client_secret,
            issuer=self.issuer,
        )


class ConnectionTokens:
    """The tokens of one connection.

    Attributes:
        values: The newest tokens; a server may still repeat one that was replaced.
    """

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self.values: deque[str] = deque(maxlen=KEPT_TOKENS)

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens
        self.values += [each for each in (tokens.access_token, tokens.refresh_token) if each]

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Refuse a client of another authorization server: the credentials of the declaration are the only ones."""
        msg = f"The MCP server asks to register the client {client_info.client_id!r}."
        raise PermissionError(msg)


S = TypeVar("S")

READ_SECONDS = 300.0
"""Time without data on an open response, where the declaration has no ``sse_read_timeout``."""

NOT_SENT = -32_050
SESSION_ENDED = -32_051
"""Codes of responses that the transport makes itself."""

NOT_CONNECTED = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
DISCONNECTED = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)
"""Failures of a request: before it was sent, and afterwards."""

MAX_CONNECTIONS = 100
KEEPALIVE_SECONDS = 5.0

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
        self._requests = _CheckedRequests(endpoint, resolver)
        self._tokens = ConnectionTokens()

    def streams(self) -> Transport:
        seconds, credentials = self._endpoint.connect_seconds, self._endpoint.credentials
        client = httpx2.AsyncClient(
            transport=self._requests,
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
        return self._requests.session_ended

    def last_words(self) -> str:
        return ""

    def secrets(self) -> Iterable[str]:
        return self._tokens.values

    def facts(self) -> Mapping[str, object]:
        return {}


@contextlib.asynccontextmanager
async def _with(client: httpx2.AsyncClient, transport: AbstractAsyncContextManager[S]) -> AsyncGenerator[S]:
    async with client, transport as streams:
        yield streams


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connections to addresses that were checked.

    The pool keeps a connection for the host of its URL, not for the address: TLS verified the certificate of that host alone.
    """

    def __init__(self, hosts: HostRules, resolver: Resolve) -> None:
        self._hosts, self._resolver, self._network = hosts, resolver, httpcore2.AnyIOBackend()

    async def connect_tcp(  # the signature of httpcore2
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._hosts.addresses(host, port, self._resolver)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from None
        return await first_connection(
            addresses,
            lambda address: self._network.connect_tcp(address, port, timeout, local_address, socket_options),
            NOT_CONNECTED,
        )

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _CheckedRequests(httpx2.AsyncBaseTransport):
    """Requests to allowed hosts; their failures are responses, as an exception would end the connection."""

    def __init__(self, endpoint: Endpoint, resolver: Resolve) -> None:
        self._endpoint = endpoint
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=endpoint.tls.context(),
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=_CheckedNetwork(endpoint.hosts, resolver),
        )
        self.session_ended = False
        self._read_by_flow = {404} if endpoint.credentials is None else {401, 403, 404}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._endpoint.hosts.check_url(str(request.url))
        self._check_message_url(request)
        url, host = request.url, request.url.raw_host.decode("ascii")
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        sent = httpcore2.Request(
            request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        try:
            response = await self._pool.handle_async_request(sent)
        except NOT_CONNECTED as error:
            return _failed(request, NOT_SENT, f"{host} cannot be reached: {_reason(error)}")
        except DISCONNECTED as error:
            return _failed(request, CONNECTION_CLOSED, f"{host} did not answer: {_reason(error)}")
        return await self._checked(request, response)

    def _check_message_url(self, request: httpx2.Request) -> None:
        declared = self._endpoint.message_url
        if request.method == "POST" and declared is not None and str(request.url.copy_with(query=None)) != declared:
            self.session_ended = True
            msg = "The MCP server asks for messages at an address other than its message_url."
            raise McpRefused(msg, code="mcp_host_denied")

    async def _checked(self, request: httpx2.Request, received: httpcore2.Response) -> httpx2.Response:
        is_stream = self._endpoint.is_sse and request.method == "GET"
        body = _Body(received, None if is_stream else self._endpoint.max_message_bytes)
        response = httpx2.Response(
            received.status, headers=received.headers, stream=body, extensions=received.extensions
        )
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
            return response
        await body.aclose()
        return _failed(request, code, problem)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx2.AsyncByteStream):
    """The body of a response; one that is too long or breaks off fails in the way that the SDK expects.

    Args:
        response: The response.
        limit: Bytes that are read; ``None`` for the stream of the older transport, whose events the SDK bounds.
    """

    def __init__(self, response: httpcore2.Response, limit: int | None) -> None:
        self._response, self._limit = response, limit
        kinds = [value.lower() for name, value in response.headers if name.lower() == b"content-type"]
        self._is_events = bool(kinds) and kinds[0].startswith(b"text/event-stream")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        try:
            async for chunk in self._response.aiter_stream():
                count += len(chunk)
                if self._limit is not None and count > self._limit:
                    raise self._failure(f"the response is above {self._limit} bytes")
                yield chunk
        except DISCONNECTED as error:
            raise self._failure(f"the response broke off: {_reason(error)}") from None

    def _failure(self, text: str) -> Exception:
        if self._limit is None:
            return httpx2.ReadError(text)
        return httpx2.SSEError(text) if self._is_events else httpx2.StreamError(text)

    async def aclose(self) -> None:
        await self._response.aclose()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _failed(request: httpx2.Request, code: int, message: str) -> httpx2.Response:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return httpx2.Response(502, json=error, request=request)
