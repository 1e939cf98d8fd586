"""The seven switches of an environment's policy, in the words and with the defaults that are published.

Policies only ever add up: whoever has a say can ask for more, and nobody can take back what another asks for.
"""

from __future__ import annotations

from pydantic import Field

from kneo.spec.base import ListOf, SpecModel


class PolicyFlags(SpecModel):
    """What a spec must satisfy to be used in an environment."""

    enabled: bool = Field(default=True, description="false skips every check of this policy.")
    fail_on_warnings: bool = Field(default=False, description="Treat every warning as a violation.")
    blocked_diagnostic_codes: ListOf[str] = Field(default=(), description="Diagnostic codes that are violations here.")
    require_human_review: bool = Field(default=False, description="A run must be able to come to a human step or gate.")
    require_tool_permissions: bool = Field(
        default=False, description="Every agent that selects tools must state permissions."
    )
    deny_unrestricted_tools: bool = Field(
        default=False, description="No agent may have shell, file system or unlimited network access."
    )
    require_guardrails: bool = Field(default=False, description="At least one agent must have a guardrail.")


NO_POLICY = PolicyFlags(enabled=False)
"""Asks for nothing; what an absent policy means where one may be absent."""

SWITCHES: dict[str, str] = {
    "fail_on_warnings": "warnings are violations",
    "require_human_review": "a person must be asked somewhere",
    "require_tool_permissions": "agents with tools must state permissions",
    "deny_unrestricted_tools": "tools must not be unrestricted",
    "require_guardrails": "an agent must have a guardrail",
}
"""The flags that are on or off, and what each asks for."""


def strictest(*policies: PolicyFlags) -> PolicyFlags:
    """Combine policies: what one of them asks for is asked for, whatever the others say.

    A policy that is not enabled asks for nothing. Without any policy the result is :data:`NO_POLICY`.
    """
    asking = [policy for policy in policies if policy.enabled]
    if not asking:
        return NO_POLICY
    codes = sorted({code for policy in asking for code in policy.blocked_diagnostic_codes})
    switches = {name: any(getattr(policy, name) for policy in asking) for name in SWITCHES}
    return PolicyFlags(enabled=True, blocked_diagnostic_codes=tuple(codes), **switches)
