"""Rules for tools: selections, implementations, calls, MCP servers, permissions, and what the environment of the check refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from kneo.spec.call_title import named_arguments
from kneo.spec.coverage.exposure import callable_tools, declared_tools, denied_permission
from kneo.spec.coverage.gates import LocatedGate, all_gates, effective_human
from kneo.spec.coverage.policy import asks_person
from kneo.spec.documents import Diagnostic, Path, Severity, error, warning
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.lint.implementations import parameters_of, unsafe_imports
from kneo.spec.models.agent import RESERVED, model_name
from kneo.spec.models.spec import SECRET_REFERENCE, HttpTool, McpServer, RemoteAgent, Tool, Verify
from kneo.spec.policy import ToolNames
from kneo.spec.tool_kinds import ASK_QUESTION, TOOL_KINDS, Backing


def host_of(url: str) -> str | None:
    """Return the host of an HTTP address in lower case; None where there is none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    return host if parts.scheme in {"http", "https"} else None


def within(host: str, domains: Iterable[str]) -> bool:
    """Tell whether a host is one of some domains, or below one."""
    return any(host == domain.lower() or host.endswith(f".{domain.lower()}") for domain in domains)


KEYS = frozenset({"key", "context"})
"""The parameters of a Python tool with which it receives the idempotency key of a call."""

PUBLIC_KEYS = frozenset({"OKP", "EC", "RSA"})
"""The types of JSON Web Keys that have a public half."""

_ORIGIN = re.compile(r"https?://[^/?#{}\\\s@]+(?=[/?#]|$)", re.IGNORECASE)


def tool_names(index: SpecIndex) -> Iterator[Diagnostic]:
    """Tools have different names for models, and none has the name of a built-in tool."""
    for name in index.spec.tools:
        if model_name(name) in RESERVED:
            message = f"The tool {name} has the name of the built-in tool {model_name(name)}."
            yield error("E_TOOL_NAME_CLASH", message, ("tools", name), suggestion="Give it another name.")
    for at in index.agents:
        first: dict[str, str] = {}
        for name in at.agent.tools.include if at.agent.tools else ():
            other = first.setdefault(model_name(name), name)
            if other != name:
                message = f"The tools {other} and {name} are both called {model_name(name)} for models."
                hint = "Rename one: models accept letters, digits, _ and -, at most 64; any other character becomes _."
                yield error("E_TOOL_NAME_CLASH", message, (*at.path, "tools"), suggestion=hint)


def effects(index: SpecIndex) -> Iterator[Diagnostic]:
    """Calls with effects are not repeated unseen, and can be recognised by what they change."""
    for name, tool in index.spec.tools.items():
        if not tool.has_effects:
            continue
        path: Path = ("tools", name)
        if tool.on_interrupted == "repeat":
            message = f"An interrupted call of {name} is repeated, and may take effect twice."
            hint = "Write on_interrupted: ask, or {verify: …} with a function that finds out."
            yield warning("W_TOOL_INTERRUPTED_REPEAT", message, (*path, "on_interrupted"), suggestion=hint)
        if tool.retries:
            message = f"A failed call of {name} has effects and is never repeated; retries has to be 0."
            hint = "Leave retries out, or write effects: false where a call over the network changes nothing."
            yield error("E_TOOL_RETRIES", message, (*path, "retries"), suggestion=hint)
        yield from _key(index, name, tool, path)


def _key(index: SpecIndex, name: str, tool: Tool, path: Path) -> Iterator[Diagnostic]:
    if tool.implementation is None or isinstance(tool.on_interrupted, Verify):
        return
    parameters = parameters_of(tool.implementation, index.context)
    if parameters is not None and not KEYS & parameters:
        message = f"The tool {name} has effects, and {tool.implementation} takes no idempotency key."
        hint = "Add the parameter key, and pass it to what the call changes: calls with equal keys are one call."
        yield warning("W_TOOL_EFFECTS_NO_KEY", message, (*path, "implementation"), suggestion=hint)


def call_titles(index: SpecIndex) -> Iterator[Diagnostic]:
    """The title of a tool's calls names arguments that the tool has; the calls shown with a question are of existing tools."""
    for name, tool in index.spec.tools.items():
        path: Path = ("tools", name)
        declared = tool.parameters.get("properties")
        known = list(declared) if isinstance(declared, Mapping) else []
        for argument in named_arguments(tool.title or "") if known else ():
            if argument not in known:
                message = f"The title of {name} names the argument {argument}, which the tool does not have."
                near = index.hints.near(argument, known) or f"Arguments: {', '.join(known)}."
                yield error("E_TOOL_TITLE", message, (*path, "title"), suggestion=near)
        for shown in tool.shows or ():
            if index.is_missing_tool(shown):
                message = f"{name} shows calls of the tool {shown}, which is neither in tools nor registered."
                near = index.hints.near(shown, index.tool_names) or f"Declare {shown} under tools, or leave it out."
                yield error("E_TOOL_REF", message, (*path, "shows"), suggestion=near, aliases=("E_UNKNOWN_TOOL",))


def requests(index: SpecIndex) -> Iterator[Diagnostic]:
    """HTTP tools and remote agents have a host that no argument changes, and secrets only in their own headers."""
    for name, tool in index.spec.tools.items():
        if tool.http is not None:
            yield from _request(tool.http, name)
        if tool.a2a is not None:
            yield from _remote_agent(index, tool.a2a, name)
    for at in index.agents:
        permissions = at.agent.tools.permissions if at.agent.tools else None
        for name in callable_tools(at.agent):
            called = index.spec.tools.get(name)
            host = next(map(host_of, called.addresses), None) if called is not None else None
            allowed = permissions.allowed_domains if permissions else ()
            if host is None or (
                within(host, allowed) and not within(host, permissions.denied_domains if permissions else ())
            ):
                continue
            message = f"The tool {name} calls {host}, which {at.agent.name} does not allow its tools."
            hint = f"Add {host} to tools.permissions.allowed_domains, or leave the tool out."
            yield warning("W_TOOL_HOST_DENIED", message, (*at.path, "tools", "permissions"), suggestion=hint)


def _request(http: HttpTool, name: str) -> Iterator[Diagnostic]:
    path: Path = ("tools", name, "http")
    if _ORIGIN.match(http.url) is None:
        message = f"The url of {name} needs a scheme and a host of its own, without arguments and credentials."
        hint = "Write https://host/path/{argument}."
        yield error("E_TOOL_HTTP", message, (*path, "url"), suggestion=hint)
    yield from _secrets(http, path)


def _remote_agent(index: SpecIndex, agent: RemoteAgent, name: str) -> Iterator[Diagnostic]:
    path: Path = ("tools", name, "a2a")
    if _ORIGIN.match(agent.url) is None or "?" in agent.url or "#" in agent.url:
        message = f"The url of {name} needs a scheme and a host, without credentials, query and fragment."
        hint = "Write https://host/path: the agent's card is at that address with /.well-known/agent-card.json."
        yield error("E_TOOL_A2A", message, (*path, "url"), suggestion=hint)
    yield from _secret_headers("E_TOOL_A2A", agent.secret_headers, path)
    for number, key in enumerate(agent.keys):
        kind = key.get("kty")
        if not isinstance(kind, str) or kind not in PUBLIC_KEYS or "d" in key:
            message = f"Key {number + 1} of {name} is no public key."
            hint = "Copy it from the JSON Web Key Set of the service: kty is OKP, EC or RSA, and d is private."
            yield error("E_TOOL_A2A", message, (*path, "keys", number), suggestion=hint)
    yield from _library(index, "I_A2A_EXTRA", "a2a", f"the tool {name}", path)


def _library(index: SpecIndex, code: str, backing: Backing, what: str, path: Path) -> Iterator[Diagnostic]:
    library = TOOL_KINDS[backing].library
    if library is not None and library in index.context.missing_libraries:
        message = f"The library of {library.title} is not installed here: a run that needs {what} is refused."
        yield Diagnostic(code, Severity.INFO, message, path, library.hint)


def _secret_headers(code: str, headers: Mapping[str, str], path: Path) -> Iterator[Diagnostic]:
    for header, text in headers.items():
        if SECRET_REFERENCE.search(text) is None:
            message = f"The header {header} names no secret."
            hint = "Write ${NAME} for the secret" + (
                ", or move the header to headers." if code == "E_TOOL_HTTP" else "."
            )
            yield error(code, message, (*path, "secret_headers", header), suggestion=hint)


def _secrets(http: HttpTool, path: Path) -> Iterator[Diagnostic]:
    yield from _secret_headers("E_TOOL_HTTP", http.secret_headers, path)
    parts: Mapping[str, Mapping[str, str]] = {"headers": http.headers, "query": http.query}
    for part, texts in parts.items():
        for name, text in texts.items():
            if SECRET_REFERENCE.search(text) is not None:
                message = f"{part}.{name} names a secret, which only secret_headers can hold."
                yield error("E_TOOL_HTTP", message, (*path, part, name), suggestion="Move it to secret_headers.")


def tool_people(index: SpecIndex) -> Iterator[Diagnostic]:
    """Questions of agents, and gates at tools, have a person who can answer."""
    humans = index.spec.components.humans
    for at in index.agents:
        name, includes = at.agent.ask_question, at.agent.tools is not None and ASK_QUESTION in at.agent.tools.include
        path = (*at.path, "ask_question")
        if name is not None and name not in humans:
            message = f"The agent {at.agent.name} asks {name}, which is not in components.humans."
            yield index.undeclared("E_TOOL_GATE_NO_HUMAN", message, path, name, humans, "components.humans")
        elif name is not None and not includes:
            message = f"ask_question has no effect: {at.agent.name} does not include the tool {ASK_QUESTION}."
            hint = f"Add {ASK_QUESTION} to tools.include, or leave it out."
            yield warning("W_FIELD_NO_EFFECT", message, path, suggestion=hint)
    for gate in all_gates(index):
        if gate.tool is not None and _nobody(index, gate):
            message = f"No person can answer the gate at the tool {gate.tool}: each one that it asks is excluded."
            hint = "Ask a person or a group who is not under exclude."
            yield error("E_TOOL_GATE_NO_HUMAN", message, gate.path, suggestion=hint)


def _nobody(index: SpecIndex, gate: LocatedGate) -> bool:
    human = effective_human(gate.gate, index.spec.components.humans)
    candidates = human.candidates
    if candidates is None or candidates.groups or candidates.roles:
        return False
    people = {*candidates.users, *([human.assignee] if human.assignee else [])}
    return bool(people) and people <= set(candidates.exclude)


def refused_tools(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select no tools that the environment denies."""
    if index.context.rules is None:
        return
    rules = index.context.rules.tools
    for at in index.agents:
        for name in callable_tools(at.agent):
            tool = index.spec.tools.get(name)
            names = tool.names(name) if tool is not None else ToolNames(name)
            refused = rules.denied(names) or rules.not_allowed(names)
            if refused is not None:
                what = name if refused == name else f"{name}, which calls {refused}"
                message = f"This environment denies the tool {what}: calls of {at.agent.name} are refused."
                hint = "Leave the tool out, or change tools.deny and tools.allow of the environment file."
                yield warning("W_TOOL_DENIED", message, (*at.path, "tools"), suggestion=hint)


def refused_servers(index: SpecIndex) -> Iterator[Diagnostic]:
    """MCP servers are programs and hosts that may be used where the spec runs."""
    used = {tool.mcp.server for tool in index.spec.tools.values() if tool.mcp is not None}
    for name, server in index.spec.mcp_servers.items():
        if name not in used:
            continue
        yield from _library(index, "I_MCP_EXTRA", "mcp", f"the server {name}", ("mcp_servers", name))
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
            *others, last = TOOL_KINDS
            hint = f"Give it one of {', '.join(others)} and {last}."
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
    if not found or asks_person(index):
        return
    if any(at.step.kind == "human" and at.step.enabled for at in index.steps):
        message = "The spec can make privileged calls, and no run reaches a step of kind human."
        hint = "Run the workflow that has the step, or write a review at the step or tool that needs one."
        yield warning("W_HUMAN_APPROVAL_UNREACHED", message, ("workflow",), suggestion=hint)
    else:
        message = "The spec can make privileged calls, and no workflow asks a person."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield warning("W_HUMAN_APPROVAL_MISSING", message, ("workflow",), suggestion=hint)


def _permissions(at: LocatedAgent) -> Iterator[Diagnostic]:
    if at.agent.tools is None:
        return
    name, path = at.agent.name, (*at.path, "tools", "permissions")
    stated = at.agent.tools.permissions
    if stated is None:
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
