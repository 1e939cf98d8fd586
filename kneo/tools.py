"""Tools that a program which embeds Kneo brings along."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kneo.errors import Conflict, Invalid, NotFound
from kneo.spec.json_schema import find_flaws

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")

Handler = Callable[[Mapping[str, Any]], str | Awaitable[str]]
"""Takes a tool's arguments as one map and returns text; may be a coroutine function."""


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """What a model is told of a tool. ``parameters`` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True)
class RegisteredTool:
    definition: ToolDefinition
    handler: Handler


class ToolRegistry:
    """The tools of a process, by name. What a spec says about a tool is laid over its definition and never under it."""

    def __init__(self) -> None:
        self._tools: dict[str, RegisteredTool] = {}

    def register(self, definition: ToolDefinition, handler: Handler) -> None:
        """Add a tool.

        Raises:
            Invalid: its name or the schema of its arguments makes no sense.
            Conflict: there is one of that name already.
        """
        if not _NAME.fullmatch(definition.name):
            msg = f"{definition.name[:100]!r} cannot name a tool: letters, digits, dots, dashes and underscores can."
            raise Invalid(msg)
        flaws = find_flaws(definition.parameters)
        if flaws:
            msg = f"The parameters of the tool {definition.name} are no JSON Schema that can be used. {flaws[0]}"
            raise Invalid(msg)
        if definition.name in self._tools:
            msg = f"There is a tool {definition.name} already."
            raise Conflict(msg)
        self._tools[definition.name] = RegisteredTool(definition, handler)

    def get(self, name: str) -> RegisteredTool:
        """Look a tool up.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self._tools:
            msg = f"Tool {name[:100]!r} has no implementation."
            raise NotFound(msg, code="tool_not_found", hint=f"Registered: {', '.join(self._tools) or 'none'}.")
        return self._tools[name]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tools)

    def __iter__(self) -> Iterator[RegisteredTool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)
