"""Tools that are Python functions: their registry in a program that embeds Kneo, their context and their result."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kneo.errors import Conflict, Invalid, NotFound
from kneo.spec.json_schema import find_flaws

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """The result of a tool call. A tool may return one in place of its output."""

    name: str
    output: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """The argument of a tool's parameter ``context``.

    ``idempotency_key`` is the same whenever a call is repeated after a crash: pass it to the services that the tool calls, so
    that an effect happens once. A parameter ``key`` receives it alone.
    """

    run_id: str
    step_id: str
    agent: str
    tool: str
    idempotency_key: str


Handler = Callable[[Mapping[str, Any]], str | ToolResult | Awaitable[str | ToolResult]]
"""A function from a map of arguments to a text, sync or async. It may also return any JSON value."""


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """The description of a tool for models. ``parameters`` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True)
class RegisteredTool:
    definition: ToolDefinition
    handler: Handler


class ToolRegistry:
    """The tools of a process, by name. A spec overrides parts of a tool's definition."""

    def __init__(self) -> None:
        self._tools: dict[str, RegisteredTool] = {}

    def register(self, definition: ToolDefinition, handler: Handler) -> None:
        """Add a tool.

        Raises:
            Invalid: the name, or the schema of the arguments, is not valid.
            Conflict: a tool has that name.
        """
        if not _NAME.fullmatch(definition.name):
            msg = (
                f"{definition.name[:100]!r} is not a name of a tool; use letters, digits, dots, dashes and underscores."
            )
            raise Invalid(msg)
        flaws = find_flaws(definition.parameters)
        if flaws:
            msg = f"The parameters of the tool {definition.name} are not a usable JSON Schema. {flaws[0]}"
            raise Invalid(msg)
        if definition.name in self._tools:
            msg = f"The tool {definition.name} is registered already."
            raise Conflict(msg)
        self._tools[definition.name] = RegisteredTool(definition, handler)

    def get(self, name: str) -> RegisteredTool:
        """Return a tool.

        Raises:
            NotFound: no tool has that name.
        """
        if name not in self._tools:
            msg = f"Tool {name[:100]!r} has no implementation."
            raise NotFound(msg, code="tool_not_found", hint=f"Registered: {', '.join(self._tools) or 'none'}.")
        return self._tools[name]

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool outside of any run, without the checks that an agent's calls pass.

        Raises:
            NotFound: no tool has that name.
        """
        output = self.get(name).handler(arguments)
        if inspect.isawaitable(output):
            output = asyncio.run(_await(output))
        if isinstance(output, ToolResult):
            return output
        return ToolResult(name=name, output=output if isinstance(output, str) else json.dumps(output))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tools)

    def __iter__(self) -> Iterator[RegisteredTool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)


async def _await(output: Awaitable[str | ToolResult]) -> str | ToolResult:
    return await output
