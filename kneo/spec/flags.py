"""The seven switches of an environment's policy, in the words and with the defaults that are published."""

from __future__ import annotations

from pydantic import Field

from kneo.spec.base import Declared, Many


class PolicyFlags(Declared):
    """What a spec must satisfy to be used in an environment."""

    enabled: bool = Field(default=True, description="false skips every check of this policy.")
    fail_on_warnings: bool = Field(default=False, description="Treat every warning as a violation.")
    blocked_diagnostic_codes: Many[str] = Field(default=(), description="Diagnostic codes that are violations here.")
    require_human_review: bool = Field(default=False, description="At least one human step or gate must exist.")
    require_tool_permissions: bool = Field(
        default=False, description="Every agent that selects tools must state permissions."
    )
    deny_unrestricted_tools: bool = Field(
        default=False, description="No agent may have shell, file system or unlimited network access."
    )
    require_guardrails: bool = Field(default=False, description="At least one agent must have a guardrail.")
