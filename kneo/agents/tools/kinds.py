"""What a kind of tools has in the engine: the opening of its backend, its check at the start of a run, and its arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kneo.agents.texts import Arguments
from kneo.errors import Invalid
from kneo.extension_points import Point
from kneo.spec.models.spec import Tool
from kneo.spec.tool_kinds import KIND_NAMES

if TYPE_CHECKING:
    from kneo.agents.addresses import HostRules
    from kneo.agents.http import HttpClient
    from kneo.agents.secrets import Secrets
    from kneo.agents.services import RulesNow
    from kneo.agents.turn import ToolBackend, ToolCall
    from kneo.settings import Settings


@dataclass(frozen=True, kw_only=True)
class BackendContext:
    """What a backend is opened with.

    Attributes:
        settings: The settings of the process.
        secrets: The secrets of the process.
        rules: The tool rules of an environment as they are now.
        client: Makes an HTTP client that reaches the hosts of some rules alone: ``HostRules.of(call.turn.agent, rules.inside)``.
        on_close: Registers what is done when the process ends.
    """

    settings: Settings = field(repr=False)
    secrets: Secrets = field(repr=False)
    rules: RulesNow
    client: Callable[[HostRules], HttpClient]
    on_close: Callable[[Callable[[], Awaitable[None]]], object]

    def secrets_of(self, call: ToolCall) -> Mapping[str, str]:
        """Return the secrets that the tool of a call declares, which everything that the call leads to is without.

        Raises:
            Forbidden: ``secret_denied`` or ``secret_missing``.
        """
        return self.fill(call, call.tool.extension.secrets if call.tool.extension is not None else {})

    def fill(self, call: ToolCall, texts: Mapping[str, str]) -> dict[str, str]:
        """Return texts with the values of their secrets, which everything that the call leads to is without.

        Raises:
            Forbidden: ``secret_denied`` or ``secret_missing``.
        """
        return {name: call.secrets.fill(text, self.secrets) for name, text in texts.items()}


def accept(_tool: Tool) -> None:
    """Accept every declaration."""


@dataclass(frozen=True, kw_only=True)
class BackendKind:
    """A kind of tools in the engine.

    Attributes:
        open: Opens the backend of a process, before its first call. The backend calls all tools of the kind.
        check: Refuses the declaration of a tool at the start of a run; raises ``Invalid``.
    """

    open: Callable[[BackendContext], ToolBackend]
    check: Callable[[Tool], None] = accept


BACKEND_KINDS = Point("tool_kinds", BackendKind, own=KIND_NAMES - {"a2a"})


def check_kind(agent: str, name: str, tool: Tool) -> None:
    """Refuse a tool of a kind that is not installed, and one whose declaration its kind refuses.

    Raises:
        Invalid: ``tool_kind_not_installed``, or as the kind says.
        ExtensionFailed: the extension that adds the kind cannot be loaded.
    """
    if tool.backend in BACKEND_KINDS.own:
        return
    if not BACKEND_KINDS.has(tool.backend):
        msg = f"The agent {agent} needs the tool {name}, and no package that is installed here adds its kind {tool.backend}."
        hint = "Install the package, or name another kind."
        raise Invalid(msg, code="tool_kind_not_installed", hint=hint, lacking="library")
    BACKEND_KINDS.load(tool.backend).check(tool)


TEXT_SCHEMA: Arguments = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The task, with everything that is needed for it."}},
    "required": ["input"],
    "additionalProperties": False,
}
"""The arguments of a tool that takes a text."""


def schema_of(tool: Tool) -> Arguments:
    """Return the JSON Schema of a tool's arguments."""
    takes = tool.kind.takes
    takes_text = takes == "text" or (takes == "parameters or text" and not tool.parameters)
    return TEXT_SCHEMA if takes_text else {"type": "object", **tool.parameters}
