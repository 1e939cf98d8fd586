"""Rules for what the environment of the check refuses: tools, and programs of MCP servers."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.diagnostics import Diagnostic, Severity, warning
from kneo.spec.hosts import host_of, within
from kneo.spec.index import SpecIndex
from kneo.spec.models.spec import McpServer


def refused_tools(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select no tools that the environment denies."""
    if index.context.rules is None:
        return
    rules = index.context.rules.tools
    for at in index.agents:
        for name in callable_tools(at.agent):
            if not rules.permits(name):
                message = f"This environment denies the tool {name}: calls of {at.agent.name} are refused."
                hint = "Leave the tool out, or change tools.deny and tools.allow of the environment file."
                yield warning("W_TOOL_DENIED", message, (*at.path, "tools"), suggestion=hint)


def refused_servers(index: SpecIndex) -> Iterator[Diagnostic]:
    """MCP servers are programs and hosts that may be used where the spec runs."""
    used = {tool.mcp.server for tool in index.spec.tools.values() if tool.mcp is not None}
    for name, server in index.spec.mcp_servers.items():
        if name not in used:
            continue
        if index.context.mcp_installed is False:
            message = (
                f"The library of MCP servers is not installed here: a run that needs the server {name} is refused."
            )
            hint = "Install it: pip install 'kneo[mcp]'."
            yield Diagnostic("I_MCP_EXTRA", Severity.INFO, message, ("mcp_servers", name), hint)
        if server.transport == "stdio":
            yield from _command(index, name, server)
        else:
            yield from _host(index, name, server)


def _command(index: SpecIndex, name: str, server: McpServer) -> Iterator[Diagnostic]:
    rules = index.context.rules
    allowed = rules.tools.mcp.commands if rules is not None else index.context.mcp_commands
    if allowed is None or server.command is None or (server.command.startswith("/") and server.command in allowed):
        return
    path = ("mcp_servers", name, "command")
    message = (
        f"The MCP server {name} starts {server.command}, which is not allowed here: calls of its tools are refused."
    )
    hint = "Write the full path of an allowed program, or add it to"
    if rules is not None:
        hint = f"{hint} tools.mcp.commands of the environment file."
        yield warning("W_MCP_COMMAND", message, path, suggestion=hint)
    else:
        hint = f"{hint} KNEO_SERV_MCP_COMMANDS."
        yield Diagnostic("I_MCP_COMMAND", Severity.INFO, message, path, hint)


def _host(index: SpecIndex, name: str, server: McpServer) -> Iterator[Diagnostic]:
    rules = index.context.rules
    if rules is None or rules.tools.mcp.hosts is None:
        return
    issuer = server.oauth.issuer if server.oauth is not None else None
    addresses = (
        ("url", server.url),
        ("sse_url", server.sse_url),
        ("message_url", server.message_url),
        ("oauth", issuer),
    )
    for key, url in addresses:
        host = host_of(url) if url is not None else None
        if host is not None and not within(host, rules.tools.mcp.hosts):
            message = f"The MCP server {name} is on {host}, which this environment does not allow: calls are refused."
            hint = "Add the host to tools.mcp.hosts of the environment file."
            yield warning("W_MCP_HOST", message, ("mcp_servers", name, key), suggestion=hint)
