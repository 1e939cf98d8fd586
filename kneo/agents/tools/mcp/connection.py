"""The connection to one MCP server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeAlias

from mcp import MCPError
from mcp.client import Client, ClientRequestContext, ClientSession, Transport
from mcp.client.auth import OAuthFlowError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_REQUEST,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequestParams,
    ErrorData,
    Implementation,
    InputRequiredResult,
    PaginatedRequestParams,
    Tool,
)
from pydantic import TypeAdapter

from kneo import __version__
from kneo.agents.tools.mcp.failures import McpServerFailed, McpSessionEnded, McpUnreachable
from kneo.agents.tools.mcp.http import NOT_SENT, SESSION_ENDED
from kneo.errors import KneoError

# The SDK logs its failures with what servers and authorization servers wrote, which may hold secrets; the call's error reports them.
logging.getLogger("mcp.client").setLevel(logging.CRITICAL + 1)

MAX_PAGES = 100
MAX_TOOLS = 1_000

CallResult: TypeAlias = CallToolResult | InputRequiredResult

_FAILURES = {CONNECTION_CLOSED: McpServerFailed, NOT_SENT: McpUnreachable, SESSION_ENDED: McpSessionEnded}
"""The protocol errors that are failures of the connection, not answers of the server."""

_call_result: TypeAdapter[CallResult] = TypeAdapter(CallResult)


class ServerTransport(Protocol):
    """What carries the messages of one connection."""

    def streams(self) -> Transport:
        """Open the transport; leaving closes it."""
        ...

    def has_ended(self) -> bool:
        """Return whether no further message can arrive."""
        ...

    def last_words(self) -> str:
        """Return what the server wrote in addition to its messages, for the message of a failure."""
        ...

    def secrets(self) -> Iterable[str]:
        """Return the secrets that the connection got by itself."""
        ...

    def facts(self) -> Mapping[str, object]:
        """Return the facts about the server for the entry of a call."""
        ...


class Connection:
    """One connection, owned by a task of its own, which alone enters and leaves the SDK's cancel scopes.

    The SDK refuses requests for sampling and roots, which are not declared.

    Args:
        name: The name of the server, for messages.
        transport: What carries the messages.
        connect_seconds: Time for the server to start and to agree on a protocol.
    """

    def __init__(self, name: str, transport: ServerTransport, connect_seconds: float) -> None:
        self._name, self._transport, self._connect_seconds = name, transport, connect_seconds
        self._session: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._error: Exception | None = None
        self._is_broken = False
        self._task = asyncio.create_task(self._own())

    @property
    def is_open(self) -> bool:
        return not (self._is_broken or self._task.done() or self._stop.is_set() or self._transport.has_ended())

    def secrets(self) -> Iterable[str]:
        """Return the secrets that the connection got by itself."""
        return self._transport.secrets()

    def facts(self) -> Mapping[str, object]:
        """Return the facts about the server for the entry of a call."""
        return self._transport.facts()

    async def ready(self) -> None:
        """Wait until the connection is open.

        Raises:
            McpUnreachable: it cannot be opened.
        """
        await self._connected()

    async def tools(self) -> Mapping[str, Tool]:
        """List the server's tools, as they are now.

        Raises:
            McpServerFailed: the server cannot be reached, or lists too many.
        """
        session, tools, cursor = await self._connected(), dict[str, Tool](), None
        for _ in range(MAX_PAGES):
            try:
                page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            except (MCPError, ValueError) as error:
                raise await self._failure(error) from None
            tools.update((tool.name, tool) for tool in page.tools)
            cursor = page.next_cursor
            if len(tools) > MAX_TOOLS:
                break
            if cursor is None:
                return tools
        msg = f"The MCP server {self._name} lists more than {MAX_TOOLS} tools, or more than {MAX_PAGES} pages."
        raise McpServerFailed(msg)

    async def call(self, request: CallToolRequestParams) -> CallResult:
        """Call a tool.

        Raises:
            MCPError: the server refuses the request.
            McpServerFailed: the server cannot be reached, or the connection ended during the call.
        """
        session = await self._connected()
        try:
            # Not ``call_tool``: it checks results with the server's own patterns, which may take any time to match.
            return await session.send_request(CallToolRequest(params=request), _call_result)
        except MCPError as error:
            if error.code in _FAILURES:
                raise await self._failure(error) from None
            raise
        except ValueError as error:
            msg = f"The MCP server {self._name} answered with something that is not a tool's result."
            raise McpServerFailed(msg) from error

    async def close(self) -> None:
        """End the connection and, over stdio, the server."""
        self._stop.set()
        await asyncio.wait({self._task})

    async def _connected(self) -> ClientSession:
        waiting: set[asyncio.Future[Any]] = {self._session, self._task}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._session.done():
            raise await self._failure(self._error or ConnectionError("the connection was closed"))
        return self._session.result()

    async def _failure(self, error: Exception) -> KneoError:
        """Return the error of a request that got no answer, with what the server wrote last."""
        if self._transport.has_ended():
            await self.close()
        cause = _leaf(self._error or error)
        self._is_broken = isinstance(cause, MCPError) and cause.code == CONNECTION_CLOSED
        if isinstance(cause, KneoError):
            return cause
        if isinstance(cause, OAuthFlowError):
            # The SDK repeats what the authorization server wrote, which may hold a token.
            msg = f"The MCP server {self._name} failed: no access token for it ({type(cause).__name__})."
            hint = "Check oauth.issuer, client_id and client_secret_ref of the server, and the log of its authorization server."
            return McpUnreachable(msg, hint=hint)
        late = f"it did not connect within {self._connect_seconds:g} s"
        words = self._transport.last_words()
        msg = f"The MCP server {self._name} failed: {late if isinstance(cause, TimeoutError) else cause}."
        failure = _FAILURES.get(cause.code, McpServerFailed) if isinstance(cause, MCPError) else McpServerFailed
        return (failure if self._session.done() else McpUnreachable)(f"{msg} It wrote: {words}" if words else msg)

    async def _own(self) -> None:
        client = Client(
            self._transport.streams(),
            mode="auto",
            cache=None,
            elicitation_callback=_refuse_elicitation,
            client_info=Implementation(name="kneo", version=__version__),
        )
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._connect_seconds):
                    await stack.enter_async_context(client)
                self._session.set_result(client.session)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001 - a group of what the SDK's tasks raised; each call raises it
            self._error = error
        finally:
            self._stop.set()


def _leaf(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _refuse_elicitation(context: ClientRequestContext, params: ElicitRequestParams) -> ErrorData:  # noqa: ARG001 - the SDK names them
    # Declares that people can be asked. Their answers may take days, so a server asks in its result, not during a call.
    return ErrorData(code=INVALID_REQUEST, message="Elicitations are answered as results: use protocol 2026-07-28.")
