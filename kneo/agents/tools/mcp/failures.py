"""Failures of MCP servers and their calls."""

from __future__ import annotations

from kneo.errors import Forbidden, KneoError, Transient


class McpServerFailed(Transient):
    """A server cannot be started or reached, or its connection has ended."""

    default_code = "mcp_server_failed"


class McpUnreachable(McpServerFailed):
    """No request was sent; trying again repeats nothing."""


class McpSessionEnded(McpUnreachable):
    """The server does not know the session of a connection that was open; a new connection has a new one."""


class McpToolFailed(KneoError):
    """A server answers a call with an error."""

    default_code = "tool_failed"


class McpRefused(Forbidden):
    """A call is not made: ``mcp_command_denied``, ``mcp_host_denied`` or ``tool_changed``."""
