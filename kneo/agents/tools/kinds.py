"""What a kind of tools has in the engine: the opening of its backend, and its check at the start of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kneo.extension_points import Point
from kneo.spec.models.spec import Tool

if TYPE_CHECKING:
    from kneo.agents.addresses import HostRules
    from kneo.agents.http import HttpClient
    from kneo.agents.secrets import Secrets
    from kneo.agents.services import RulesNow
    from kneo.agents.turn import ToolBackend
    from kneo.settings import Settings


@dataclass(frozen=True, kw_only=True)
class BackendContext:
    """What a backend is opened with.

    Attributes:
        settings: The settings of the process.
        secrets: The secrets of the process. A backend reads them with ``call.secrets.fill(TEXT, secrets)``, which hides them in
            everything that the call leads to.
        rules: The tool rules of an environment as they are now.
        client: Makes an HTTP client that reaches the hosts of some rules alone: ``HostRules.of(call.turn.agent, rules.inside)``.
        on_close: Registers what is done when the process ends.
    """

    settings: Settings = field(repr=False)
    secrets: Secrets = field(repr=False)
    rules: RulesNow
    client: Callable[[HostRules], HttpClient]
    on_close: Callable[[Callable[[], Awaitable[None]]], object]


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


BACKEND_KINDS = Point("tool_kinds", BackendKind, own={"python", "http", "mcp", "agent", "extension"})
