"""Denials of tool calls: by the permissions of the agent, and by the rules of the environment as they are now. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.spec.coverage.exposure import PERMISSIONS, permissions_of
from kneo.spec.models.agent import Agent, ToolPermissions
from kneo.spec.models.spec import Tool
from kneo.spec.policy import ToolNames, ToolRules


def find_denial(name: str, tool: Tool | None, agent: Agent, rules: ToolRules, environment: str | None) -> str | None:
    """Return why a tool may not be called: by the agent's permissions, or by the rules of the environment as they are now.

    ``tool`` is ``None`` for the built-in tools, which lists of allowed tools need not name: they ask a person or read what the
    spec has, and do nothing else.
    """
    permissions = permissions_of(agent) or ToolPermissions()
    names = tool.names(name) if tool is not None else ToolNames(name)
    denied = rules.denied(names)
    if denied is not None:
        return f"The environment {environment} denies {_what(name, denied)}."
    if name in permissions.denied_tools:
        return f"The agent's permissions deny the tool {name}."
    if tool is None:
        return None
    unlisted = rules.not_allowed(names)
    if unlisted is not None:
        return f"The environment {environment} does not allow {_what(name, unlisted)}."
    if permissions.allowed_tools is not None and name not in permissions.allowed_tools:
        return f"The agent's permissions do not allow the tool {name}."
    needed = [PERMISSIONS[capability] for capability in tool.all_capabilities if capability in PERMISSIONS]
    refused = [f"{permission}: false" for permission in needed if getattr(permissions, permission) is False]
    return f"The agent's permissions ({', '.join(refused)}) do not allow the tool {name}." if refused else None


def _what(name: str, matched: str) -> str:
    """Return a tool in words; what is behind it is not named, because the model reads this."""
    return f"the tool {name}" if matched == name else f"what the tool {name} calls"


def find_call_denial(
    name: str,
    tool: Tool | None,
    agent: Agent,
    rules: ToolRules,
    environment: str | None,
    compared: Mapping[str, object],
) -> str | None:
    """Return why a call may not be made: as ``find_denial``, or by its arguments; ``compared`` is what expressions compare."""
    denial = find_denial(name, tool, agent, rules, environment)
    if denial is None and tool is not None and rules.denies_call(tool.names(name), compared):
        return f"The environment {environment} denies this call of the tool {name} by its arguments."
    return denial
