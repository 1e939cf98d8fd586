"""Pins: what a server said about a tool when its bundle was signed, compared with what it says now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kneo.agents.tools.mcp.failures import McpRefused
from kneo.digest import digest_of_json
from kneo.spec.models.spec import McpPin, Tool

HINT = "Review the server's change, then sign a new version with kneo spec bundle sign --pin-tools."


@dataclass(frozen=True, kw_only=True)
class OfferedTool:
    """A tool as a server describes it."""

    name: str
    description: str = ""
    input_schema: Mapping[str, object] = field(default_factory=dict)
    output_schema: Mapping[str, object] | None = None
    is_read_only: bool = False
    """Whether the server says that calls change nothing; that is not verified."""

    def pin(self) -> McpPin:
        """Return the pin of this description.

        Raises:
            Invalid: a schema has no canonical JSON.
        """
        schemas = {"input": self.input_schema, "output": self.output_schema}
        return McpPin(description=self.description, schema_digest=digest_of_json(schemas))


def check_pin(server: str, name: str, pin: McpPin | None, offered: Mapping[str, OfferedTool]) -> None:
    """Compare a tool with its pin.

    Args:
        server: The server's name in the spec.
        name: The tool's name at the server.
        pin: The pin; ``None`` where the environment requires one and the spec has none.
        offered: The server's tools now.

    Raises:
        McpRefused: ``tool_changed``, or ``tool_not_pinned``.
    """
    if pin is None:
        msg = f"The tool {name} of the MCP server {server} has no pin, which this environment requires."
        raise McpRefused(msg, code="tool_not_pinned", hint="Sign the bundle with kneo spec bundle sign --pin-tools.")
    tool = offered.get(name)
    if tool is None:
        msg = f"The MCP server {server} no longer offers the tool {name}."
        raise McpRefused(msg, code="tool_changed", hint=HINT)
    now = tool.pin()
    changed = [
        what
        for what, before, after in (
            ("description", pin.description, now.description),
            ("schema", pin.schema_digest, now.schema_digest),
        )
        if before != after
    ]
    if changed:
        msg = f"The {' and the '.join(changed)} of the tool {name} of the MCP server {server} changed since it was pinned."
        raise McpRefused(msg, code="tool_changed", hint=HINT)


def changed_parts(tool: Tool, offered: OfferedTool) -> tuple[str, ...]:
    """Return the schemas of a declared tool that differ from what its server says; those left out do not."""
    parts = (
        ("parameters", tool.parameters or None, offered.input_schema),
        ("returns", tool.returns, offered.output_schema),
    )
    return tuple(name for name, declared, now in parts if declared is not None and declared != now)
