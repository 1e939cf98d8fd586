"""Policy flags of an environment, with the published names and defaults.

Policies combine to the strictest: each source of a policy can add requirements, and none can remove those of another.
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
    require_guardrails: bool = Field(
        default=False, description="A guardrail must run: of an agent that the run reaches, or as a step."
    )


NO_POLICY = PolicyFlags(enabled=False)
"""The policy without requirements, where a policy may be absent."""

SWITCHES: dict[str, str] = {
    "fail_on_warnings": "warnings are violations",
    "require_human_review": "a person must be asked somewhere",
    "require_tool_permissions": "agents with tools must state permissions",
    "deny_unrestricted_tools": "tools must not be unrestricted",
    "require_guardrails": "a guardrail must run",
}
"""The flags that are on or off, and the requirement of each."""


def strictest(*policies: PolicyFlags) -> PolicyFlags:
    """Combine policies to the strictest of all.

    A policy that is not enabled has no requirements. Without any policy the result is :data:`NO_POLICY`.
    """
    enabled = [policy for policy in policies if policy.enabled]
    if not enabled:
        return NO_POLICY
    codes = sorted({code for policy in enabled for code in policy.blocked_diagnostic_codes})
    switches = {name: any(getattr(policy, name) for policy in enabled) for name in SWITCHES}
    return PolicyFlags(enabled=True, blocked_diagnostic_codes=tuple(codes), **switches)
