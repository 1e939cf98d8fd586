"""Kinds of tools whose calls extensions make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kneo.agents.addresses import HostRules
from kneo.agents.http import HttpClient
from kneo.agents.secrets import Secrets
from kneo.agents.services import RulesNow
from kneo.agents.turn import ToolBackend
from kneo.extension_points import Point


@dataclass(frozen=True, kw_only=True)
class BackendContext:
    """What the calls of a kind of tools are made with.

    Attributes:
        secrets: The secrets of this process.
        rules: The rules in force.
        seconds: Time for a call whose tool states none.
        client: Makes the client of HTTP for the rules of an agent.
    """

    secrets: Secrets
    rules: RulesNow
    seconds: float
    client: Callable[[HostRules], HttpClient]


@dataclass(frozen=True)
class BackendKind:
    """A kind of tools: how its calls are made. The spec language names the kinds that there are."""

    open: Callable[[BackendContext], ToolBackend]


ADDED: tuple[str, ...] = ("a2a",)
"""The kinds of the spec language whose calls extensions make."""

TOOL_KINDS = Point("tool_kinds", BackendKind, own={"http", "mcp", "python"})


def open_backends(context: BackendContext) -> Mapping[str, ToolBackend]:
    """Return what makes the calls of the kinds whose extensions are installed.

    Raises:
        ExtensionFailed: an extension cannot be loaded.
    """
    return {kind: TOOL_KINDS.load(kind).open(context) for kind in ADDED if TOOL_KINDS.has(kind)}
