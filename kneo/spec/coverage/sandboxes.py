"""The parts of a spec that run code, and what the rules of an environment refuse of their sandboxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kneo.errors import Forbidden
from kneo.spec.models.sandbox import NOTHING, Sandbox, excesses
from kneo.spec.models.spec import McpServer, Spec, Tool, Verify
from kneo.spec.policy import SandboxLevel, SandboxRules


@dataclass(frozen=True, kw_only=True)
class CodePart:
    """A tool, function or MCP server that runs code.

    Attributes:
        name: Its name in the spec.
        sandbox: What it declares.
        outside: Why it runs outside sandboxes; ``None`` where it runs in one.
    """

    name: str
    sandbox: Sandbox | None = None
    outside: str | None = None

    @property
    def profile(self) -> Sandbox:
        """What it declares; nothing declared is nothing allowed."""
        return self.sandbox or NOTHING

    def level(self, rules: SandboxRules) -> SandboxLevel:
        """Return the level at which it runs."""
        return rules.level_of(self.name, self.profile.level)


def code_parts(spec: Spec) -> Iterator[CodePart]:
    """Yield the parts of a spec that run code."""
    for name, tool in spec.tools.items():
        if tool.runs_code:
            yield tool_part(name, tool)
        elif isinstance(tool.on_interrupted, Verify):
            yield CodePart(name=name, sandbox=tool.sandbox)
    for name, function in spec.components.functions.items():
        yield CodePart(name=name, sandbox=function.sandbox)
    for name, server in spec.mcp_servers.items():
        if server.transport == "stdio":
            yield server_part(name, server)


def tool_part(name: str, tool: Tool) -> CodePart:
    """Return a tool whose calls run code of this or another process."""
    outside = None if tool.kinds else "is registered by the program and runs in the worker"
    return CodePart(name=name, sandbox=tool.sandbox, outside=outside)


def server_part(name: str, server: McpServer) -> CodePart:
    """Return a server over stdio."""
    return CodePart(name=name, sandbox=server.sandbox)


def called_part(spec: Spec, name: str, tool: Tool) -> CodePart | None:
    """Return what a call of a tool runs; ``None`` where it runs no code of this machine."""
    if tool.runs_code:
        return tool_part(name, tool)
    server = spec.mcp_servers.get(tool.mcp.server or "") if tool.mcp is not None else None
    if tool.mcp is None or server is None or server.transport != "stdio":
        return None
    return server_part(tool.mcp.server or "", server)


def sandbox_refusals(part: CodePart, rules: SandboxRules, environment: str | None) -> Iterator[Forbidden]:
    """Yield what the rules of an environment refuse of a part.

    Args:
        part: The part.
        rules: The rules.
        environment: The environment; ``None`` where the operator's settings are the rules.
    """
    where = environment or "KNEO_SERV_TOOLS_SANDBOX"
    if part.outside is not None:
        if part.level(rules) == "kernel":
            message = f"{part.name} {part.outside}; {where} requires kernel."
            yield Forbidden(
                message, code="sandbox_trusted", hint="List it in tools.sandbox.trusted of the environment."
            )
        return
    for key, words in excesses(part.sandbox, rules.limits):
        message = f"{part.name} {words}, which {where} does not permit (tools.sandbox.limits.{key})."
        yield Forbidden(message, code="sandbox_exceeds", hint="Declare less under sandbox, or change the environment.")
