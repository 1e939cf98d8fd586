"""The rules for tools of the operator, which hold where no environment is declared."""

from __future__ import annotations

from kneo.settings import Settings
from kneo.spec.policy import McpRules, SandboxRules, ToolRules


def operator_rules(settings: Settings) -> ToolRules:
    """Return the tool rules of the operator."""
    return ToolRules(
        inside=settings.agents.inside,
        mcp=McpRules(commands=settings.mcp.commands),
        sandbox=SandboxRules.model_validate({"required": settings.agents.sandbox}),
    )
