"""The tools that the MCP servers of a spec offer now, and their pins in a spec to sign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from kneo.agents.mcp import McpTools
from kneo.agents.mcp.pins import OfferedTool
from kneo.agents.services import operator_rules
from kneo.errors import Invalid, NotFound
from kneo.settings import Settings
from kneo.spec.models.rules import ToolRules
from kneo.spec.models.spec import Spec

Offers = Mapping[str, Mapping[str, OfferedTool]]
"""Tools by server and by name."""


def ask_servers(settings: Settings, spec: Spec, servers: Iterable[str]) -> Offers:
    """Connect to servers of a spec from this machine, and list their tools.

    Raises:
        NotFound: the spec does not declare a server.
        McpRefused: this machine's settings do not allow it.
        McpServerFailed: it cannot be reached.
    """
    names = sorted(set(servers))
    for name in names:
        if name not in spec.mcp_servers:
            msg = f"The spec has no MCP server {name}; declared: {', '.join(sorted(spec.mcp_servers)) or 'none'}."
            raise NotFound(msg, hint="Declare it in mcp_servers.")

    async def rules(_environment: str | None) -> ToolRules:
        return operator_rules(settings)

    return asyncio.run(_ask(McpTools(rules, settings.secret, settings.mcp), spec, names))


async def _ask(mcp: McpTools, spec: Spec, names: Iterable[str]) -> Offers:
    try:
        return {name: await mcp.tools(name, spec.mcp_servers[name]) for name in names}
    finally:
        await mcp.close()


def pin_tools(settings: Settings, tree: Mapping[str, object], warn: Callable[[str, str], None]) -> dict[str, object]:
    """Return a resolved spec in which each tool of an MCP server has the pin of what the server says now.

    Args:
        settings: The settings of this process.
        tree: The spec.
        warn: Receives each tool whose parameters differ from the server's, and its server.

    Raises:
        Invalid: no tool of the spec is of an MCP server.
        NotFound: a server does not offer a tool.
        McpRefused, McpServerFailed: a server cannot be asked.
    """
    spec = Spec.model_validate(tree)
    references = {name: tool.mcp for name, tool in spec.tools.items() if tool.mcp is not None}
    if not references:
        msg = "No tool of this spec is of an MCP server, so there is nothing to pin."
        raise Invalid(msg, hint="Leave out --pin-tools.")
    offers = ask_servers(settings, spec, (reference.server or "" for reference in references.values()))
    tools = tree["tools"]
    assert isinstance(tools, Mapping)
    pinned = dict(tools)
    for name, reference in references.items():
        offered = offers[reference.server or ""].get(reference.name or name)
        if offered is None:
            msg = f"The MCP server {reference.server} does not offer the tool {reference.name or name}."
            raise NotFound(msg, hint=f"Update the tool {name}: kneo spec mcp pull.")
        if spec.tools[name].parameters != offered.input_schema:
            warn(name, reference.server or "")
        tool = pinned[name]
        assert isinstance(tool, Mapping)
        pinned[name] = {**tool, "mcp": {**tool["mcp"], "pin": offered.pin().model_dump()}}
    return {**tree, "tools": pinned}
