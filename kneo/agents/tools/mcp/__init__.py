"""MCP servers: their connections, processes, tools and pins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kneo.agents.sandboxes import SandboxHost
from kneo.agents.services import RulesNow
from kneo.agents.tools.kinds import BackendContext, BackendKind
from kneo.agents.turn import ToolCall
from kneo.extension_points import import_with_extra
from kneo.settings import McpSettings

if TYPE_CHECKING:
    from kneo.agents.tools.mcp.pins import OfferedTool
    from kneo.agents.tools.mcp.servers import McpServers
    from kneo.spec.models.spec import McpServer


class McpTools:
    """The tools of MCP servers, for a process that may never call one: the SDK is imported at the first call.

    All its methods belong to the event loop that first used it.

    Args:
        rules: The tool rules of an environment as they are now; for ``None`` those of the operator.
        secrets: From the name of a secret to its value.
        settings: Times and retries of connections and calls.
        host: What sandboxes of this machine may have.
    """

    def __init__(
        self,
        rules: RulesNow,
        secrets: Callable[[str], str | None],
        settings: McpSettings,
        host: SandboxHost,
    ) -> None:
        self._rules, self._secrets, self._settings, self._host = rules, secrets, settings, host
        self._servers: McpServers | None = None

    async def call(self, call: ToolCall) -> object:
        """Call a tool of a server; see ``McpServers.call``."""
        return await (await self._loaded()).call(call)

    async def tools(self, name: str, server: McpServer, environment: str | None = None) -> Mapping[str, OfferedTool]:
        """List the tools of a server, as it describes them now; see ``McpServers.tools``."""
        return await (await self._loaded()).tools(name, server, environment)

    async def close(self) -> None:
        """Close all connections, and end all servers over stdio."""
        if self._servers is not None:
            await self._servers.close()

    async def _loaded(self) -> McpServers:
        # In a thread: the import takes seconds on a busy machine, and other runs go on meanwhile.
        module = await asyncio.to_thread(
            import_with_extra, "kneo.agents.tools.mcp.servers", "mcp", "A tool of an MCP server"
        )
        if self._servers is None:
            self._servers = module.McpServers(self._rules, self._secrets, self._settings, self._host)
        return self._servers


def _open(context: BackendContext) -> McpTools:
    tools = McpTools(context.rules, context.secrets, context.settings.mcp, SandboxHost.of(context.settings))
    context.on_close(tools.close)
    return tools


KIND = BackendKind(open=_open)
