"""Rules for tools: selections, implementations, MCP servers, permissions and capabilities."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.exposure import declared_tools, denied_permission
from kneo.spec.coverage.questions import asks_person
from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.documents import Path
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.lint.implementations import unsafe_imports

_TRANSPORT_FIELD = {"stdio": "command", "http": "url", "sse": "sse_url"}


def tool_selections(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select tools that exist, and do not exclude the tools that they include."""
    for at in index.agents:
        selected, path = at.agent.tools, (*at.path, "tools")
        if selected is None:
            continue
        for name in sorted(frozenset(selected.include) & frozenset(selected.exclude)):
            yield error("E_TOOL_CONFLICT", f"The tool {name} is both included and excluded.", path)
        for name in dict.fromkeys(selected.include):
            if index.is_missing_tool(name):
                hint = index.hints.near(name, index.tool_names) or f"Declare {name} under tools, or register it."
                message = f"The tool {name} is neither in tools nor registered by the platform."
                yield error("E_TOOL_REF", message, path, suggestion=hint, aliases=("E_UNKNOWN_TOOL",))


def skill_selections(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select skills that exist, and the tools that their skills speak of."""
    for at in index.agents:
        path, included = (*at.path, "skills"), at.agent.tools.include if at.agent.tools is not None else ()
        for name in dict.fromkeys(at.agent.skills):
            if name not in index.spec.skills:
                message = f"The skill {name} is not in skills."
                yield index.undeclared("E_SKILL_REF", message, path, name, index.spec.skills, "skills")
                continue
            missing = [tool for tool in index.spec.skills[name].tools if tool not in included]
            if missing:
                message = f"The skill {name} speaks of {', '.join(missing)}, which {at.agent.name} does not include."
                hint = "Add the tools to tools.include of the agent, or take them out of the skill's tools."
                yield warning("W_SKILL_TOOL", message, path, suggestion=hint)


def tool_backings(index: SpecIndex) -> Iterator[Diagnostic]:
    """Every tool has exactly one implementation, MCP tool or agent, and the agent exists.

    A tool that the platform registers, or whose calls are carried out externally, needs none of them.
    """
    for name, tool in index.spec.tools.items():
        path: Path = ("tools", name)
        backings = tool.backings
        external = tool.review is not None and tool.review.external is not None
        registered = index.context.tools
        if not backings and not external and registered is not None and name not in registered:
            hint = "Give it one of implementation, http, mcp, agent and a2a."
            yield error("E_TOOL_NO_BACKING", f"The tool {name} has no implementation.", path, suggestion=hint)
        if len(backings) > 1:
            message = f"The tool {name} has {' and '.join(backings)}; a call can only go to one of them."
            yield error("E_TOOL_MULTIPLE_BACKINGS", message, path)
        if tool.agent is None:
            continue
        agents = index.spec.components.agents
        if tool.agent not in agents:
            message = f"The agent {tool.agent} of the tool {name} is not in components.agents."
            code, at = "E_AGENT_TOOL_UNKNOWN_AGENT", (*path, "agent")
            yield index.undeclared(code, message, at, tool.agent, agents, "components.agents")
        if tool.parameters:
            message = f"The tool {name} is an agent, which takes text; its parameters are ignored."
            yield warning("W_AGENT_TOOL_PARAMETERS_IGNORED", message, (*path, "parameters"))


def mcp(index: SpecIndex) -> Iterator[Diagnostic]:
    """MCP servers have an address, and tools name a declared server."""
    servers = index.spec.mcp_servers
    for name, server in servers.items():
        field = _TRANSPORT_FIELD[server.transport]
        if not getattr(server, field):
            message = f"The server {name} uses {server.transport} and has no {field}."
            yield error("E_MCP_MISSING_FIELD", message, ("mcp_servers", name, field), suggestion=f"Write {field}.")
        unsafe = server.unsafe_start() if server.transport == "stdio" else None
        if unsafe is not None:
            message = f"The server {name} {unsafe[1]}: it is not started."
            hint = "Give secrets in env." if unsafe[0][0] == "args" else "Remove the variable."
            yield warning("W_MCP_PROGRAM", message, ("mcp_servers", name, *unsafe[0]), suggestion=hint)
        if server.transport != "stdio" and server.verify is False:
            message = f"The certificate of the server {name} is not checked; any host in between can answer for it."
            hint = "Leave verify out, and name your own authority with ca_bundle."
            yield warning("W_MCP_TLS_VERIFY_DISABLED", message, ("mcp_servers", name, "verify"), suggestion=hint)
    for name, tool in index.spec.tools.items():
        if tool.mcp is None:
            continue
        if not tool.mcp.server:
            message = f"The tool {name} is an MCP tool without a server."
            yield error("E_MCP_TOOL_NO_SERVER", message, ("tools", name, "mcp"), suggestion="Write mcp.server.")
        elif tool.mcp.server not in servers:
            message = f"The server {tool.mcp.server} of the tool {name} is not in mcp_servers."
            path = ("tools", name, "mcp", "server")
            yield index.undeclared("E_MCP_UNKNOWN_SERVER", message, path, tool.mcp.server, servers, "mcp_servers")


def governance(index: SpecIndex) -> Iterator[Diagnostic]:
    """Dangerous permissions are reported; a spec with any of them asks a person in a workflow."""
    found = [*unsafe_imports(index), *(each for at in index.agents for each in _permissions(at))]
    yield from found
    if found and not asks_person(index):
        message = "The spec can make privileged calls, and no workflow asks a person."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield warning("W_HUMAN_APPROVAL_MISSING", message, ("workflow",), suggestion=hint)


def _permissions(at: LocatedAgent) -> Iterator[Diagnostic]:
    if at.agent.tools is None:
        return
    name, path = at.agent.name, (*at.path, "tools", "permissions")
    stated = at.agent.tools.permissions
    if stated is None:
        if at.agent.tools.include:
            message = f"The agent {name} has tools without permissions."
            hint = "Write tools.permissions, with false for every permission that no tool needs."
            yield warning("W_TOOL_POLICY_UNRESTRICTED", message, path, suggestion=hint)
        return
    if stated.allow_network and not stated.allowed_domains:
        message = f"The tools of {name} may reach every host."
        hint = "List the hosts they need in allowed_domains."
        yield warning("W_TOOL_NETWORK_UNRESTRICTED", message, (*path, "allowed_domains"), suggestion=hint)
    if stated.allow_shell:
        message = f"The tools of {name} may run any command."
        hint = "Give the agent a tool for the command it needs, and set allow_shell to false."
        yield warning("W_TOOL_SHELL_ALLOWED", message, (*path, "allow_shell"), suggestion=hint)
    for verb, code in (("write", "W_TOOL_FILESYSTEM_WRITE_ALLOWED"), ("read", "W_TOOL_FILESYSTEM_READ_ALLOWED")):
        permission = f"allow_filesystem_{verb}"
        if getattr(stated, permission):
            message = f"The tools of {name} may {verb} files."
            yield warning(
                code, message, (*path, permission), suggestion=f"Set {permission} to false unless a tool needs it."
            )


def capabilities(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents allow the capabilities of the tools that they select: a call without permission is refused."""
    for at in index.agents:
        for name, tool in declared_tools(index, at.agent):
            for capability in tool.all_capabilities:
                permission = denied_permission(at.agent, capability)
                if permission is not None:
                    message = f"The tool {name} needs {capability}, which {at.agent.name} does not allow its tools."
                    hint = f"Set {permission} to true, or leave the tool out."
                    path = (*at.path, "tools", "permissions", permission)
                    yield warning("W_TOOL_CAPABILITY_DENIED", message, path, suggestion=hint)
