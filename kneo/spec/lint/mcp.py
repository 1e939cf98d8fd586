"""MCP servers and the tools that come from them."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.index import SpecIndex

_NEEDED = {"stdio": "command", "http": "url", "sse": "sse_url"}


def mcp(view: SpecIndex) -> Iterator[Diagnostic]:
    """Servers can be reached, and tools name a server that is declared."""
    for name, server in view.spec.mcp_servers.items():
        path = ("mcp_servers", name)
        field = _NEEDED[server.transport]
        if not getattr(server, field):
            message = f"The server {name} speaks {server.transport} and has no {field}."
            yield error("E_MCP_MISSING_FIELD", message, (*path, field), suggestion=f"Write {field}.")
        if server.transport != "stdio" and server.verify is False:
            message = f"The certificate of the server {name} is not checked; anybody between can answer for it."
            hint = "Leave verify out, and name your own authority with ca_bundle."
            yield warning("W_MCP_TLS_VERIFY_DISABLED", message, (*path, "verify"), suggestion=hint)
    for name, tool in view.spec.tools.items():
        if tool.mcp is None:
            continue
        if not tool.mcp.server:
            message = f"The tool {name} comes from an MCP server and does not say which."
            yield error("E_MCP_TOOL_NO_SERVER", message, ("tools", name, "mcp"), suggestion="Write mcp.server.")
        elif tool.mcp.server not in view.spec.mcp_servers:
            servers = view.spec.mcp_servers
            message = f"The tool {name} comes from {tool.mcp.server}, which is not in mcp_servers."
            hint = view.hints.near(tool.mcp.server, servers) or "Declare it under mcp_servers."
            yield error("E_MCP_UNKNOWN_SERVER", message, ("tools", name, "mcp", "server"), suggestion=hint)
