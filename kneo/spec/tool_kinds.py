"""The kinds of tools: one row each, with the field that declares a tool of the kind, what its calls do and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from kneo.distribution import install_extra

Capability: TypeAlias = Literal["network", "filesystem_read", "filesystem_write", "shell", "privileged"]
"""What a call may do beyond computing its result; ``privileged`` is anything that should not happen unseen."""

Backing: TypeAlias = Literal["implementation", "http", "mcp", "agent", "a2a", "extension", "script"]
"""A field of a tool that says what is behind it."""

ASK_QUESTION = "ask_question"
"""The built-in tool with which an agent that includes it asks a person."""

READ_SKILL = "read_skill"
"""The built-in tool with which an agent reads the skills whose content is not in its system prompt."""

CALL_TARGET = "call"
"""The target of a run that makes one tool call, which another program states."""

GET_CALL = "get_call"
"""The built-in MCP tool that returns the state of a call."""

BUILTIN_TOOLS = frozenset({ASK_QUESTION, READ_SKILL})
"""The tools that no spec declares. They ask a person or read the spec, and do nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A library that an extra installs.

    Attributes:
        module: The module by which its presence is found out.
        extra: The extra of Kneo.
        title: The library in words.
    """

    module: str
    extra: str
    title: str

    @property
    def code(self) -> str:
        """The code of the error where it is not installed."""
        return f"{self.extra}_not_installed"

    @property
    def hint(self) -> str:
        """How to install it."""
        return f"Install it: {install_extra(self.extra)}."


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolKind:
    """A kind of tool.

    Attributes:
        name: The name of the kind.
        backing: The field that declares a tool of the kind.
        capabilities: What each call does, whatever the tool declares.
        library: The library that calls need.
        takes: The arguments of a call: those of ``parameters``; a text; or a text where there are no ``parameters``.
        checks_hosts: Whether a call checks the hosts that it reaches by itself, or reaches none; else those in its arguments are
            checked before it.
        time_limit: The limit that the engine sets for a call: that of the tool or else of the process; that of the tool
            alone, because the kind has a limit of its own; or none, because the kind keeps both itself.
        span_type: The type of the tool in traces, by the conventions of OpenTelemetry.
    """

    name: str
    backing: Backing
    capabilities: tuple[Capability, ...] = ()
    library: Library | None = None
    takes: Literal["parameters", "text", "parameters or text"] = "parameters"
    checks_hosts: bool = False
    time_limit: Literal["tool or process", "tool", "none"] = "tool or process"
    span_type: Literal["function", "extension"] = "function"


def _table(*rows: ToolKind) -> Mapping[Backing, ToolKind]:
    return MappingProxyType({row.backing: row for row in rows})


TOOL_KINDS = _table(
    ToolKind(name="python", backing="implementation"),
    ToolKind(name="http", backing="http", capabilities=("network",), checks_hosts=True),
    ToolKind(
        name="mcp",
        backing="mcp",
        library=Library(module="mcp", extra="mcp", title="MCP servers"),
        time_limit="tool",
        span_type="extension",
    ),
    ToolKind(name="agent", backing="agent", takes="text", checks_hosts=True),
    ToolKind(
        name="a2a",
        backing="a2a",
        capabilities=("network",),
        library=Library(module="a2a", extra="a2a", title="Agent2Agent"),
        takes="parameters or text",
        time_limit="none",
    ),
    # Kneo does not know what a package does: the spec can only declare more than the network.
    ToolKind(name="extension", backing="extension", capabilities=("network",), span_type="extension"),
    ToolKind(name="script", backing="script"),
)
"""Every kind by its field, in the order of the fields."""

KIND_NAMES = frozenset(kind.name for kind in TOOL_KINDS.values())
"""The names of all kinds, which no package can add."""

REGISTERED = TOOL_KINDS["implementation"]
"""The kind of a tool that declares no backing: the process registered it."""
