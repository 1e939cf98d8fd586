"""MCP over standard input and output: the server of one environment, in this process or relayed to a service."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
)
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp_types import PROTOCOL_VERSION_META_KEY, JSONRPCRequest

from kneo.extensions.protocols.mcp.server import HasServer


async def serve_stdio(tools: HasServer) -> None:
    """Serve until the input ends."""
    server = tools.server()
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())


CONNECT_SECONDS = 30.0
CALL_SECONDS = 900.0
"""Time without a byte of the service: a call waits for its run for ten minutes at most."""


async def relay_stdio(url: str, key: str) -> None:
    """Relay messages until the input ends.

    Args:
        url: The address of the MCP server of an environment.
        key: The API key; empty for a service without keys.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=CALL_SECONDS)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout) as http,
        streamable_http_client(url, http_client=http) as (of_service, to_service),
        stdio_server() as (of_client, to_client),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_relay, of_service, to_client.send)
        await _relay(of_client, lambda message: to_service.send(_routed(message)))
        tasks.cancel_scope.cancel()


async def _relay(
    messages: AsyncIterable[SessionMessage | Exception], send: Callable[[SessionMessage], Awaitable[None]]
) -> None:
    async for message in messages:
        if isinstance(message, SessionMessage):  # else one that could not be read
            await send(message)


def _routed(message: SessionMessage) -> SessionMessage:
    """Return a message with the headers that the protocol has over HTTP since version 2026-07-28."""
    request = message.message
    if not isinstance(request, JSONRPCRequest):
        return message
    params = request.params or {}
    meta = params.get("_meta")
    version = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    if not isinstance(version, str):
        return message
    headers = {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: request.method}
    is_of_task = request.method.startswith("tasks/")
    name = params.get("taskId" if is_of_task else NAME_BEARING_METHODS.get(request.method, ""))
    if isinstance(name, str):
        headers[MCP_NAME_HEADER] = encode_header_value(name)
    return SessionMessage(request, ClientMessageMetadata(headers=headers))
