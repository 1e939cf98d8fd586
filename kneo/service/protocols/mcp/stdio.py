"""The MCP server of one environment over standard input and output."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

from kneo.service.protocols.mcp.server import AgentTools


async def serve_stdio(tools: AgentTools) -> None:
    """Serve until the input ends."""
    server = tools.server()
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())
