"""What an environment asks of every spec that is to run in it.

The order of the findings and the codes are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kneo.spec.context import NOTHING_KNOWN
from kneo.spec.coverage.permissions import is_unrestricted
from kneo.spec.coverage.questions import agent_asks_somebody, asks_somebody
from kneo.spec.diagnostics import Diagnostic, Severity, error
from kneo.spec.index import SpecIndex
from kneo.spec.models import Spec
from kneo.spec.policy_flags import PolicyFlags


def check_policy(
    spec: Spec, diagnostics: Sequence[Diagnostic], flags: PolicyFlags, *, target: str | None = None
) -> tuple[Diagnostic, ...]:
    """Judge a spec by a policy.

    Args:
        spec: The spec, in normal form.
        diagnostics: What the rules found in it.
        flags: The policy.
        target: What is run of it: ``workflow`` or ``agent``; None for all that a released bundle of it may run.

    Returns:
        The violations, in the published order; all of them are errors.
    """
    if not flags.enabled:
        return ()
    return (*_findings(diagnostics, flags), *_demands(SpecIndex.of(spec, NOTHING_KNOWN), flags, target))


def _findings(diagnostics: Sequence[Diagnostic], flags: PolicyFlags) -> Iterator[Diagnostic]:
    blocked = frozenset(flags.blocked_diagnostic_codes)
    for found in diagnostics:
        if blocked & {found.code, *found.aliases}:
            yield _violation("E_ENV_POLICY_DIAGNOSTIC", f"{found.code} is not accepted here: {found.message}", found)
        if flags.fail_on_warnings and found.severity is Severity.WARNING:
            yield _violation("E_ENV_POLICY_WARNING", f"Warnings are not accepted here: {found.message}", found)


def _violation(code: str, message: str, found: Diagnostic) -> Diagnostic:
    """Turn a finding into a violation at the same place."""
    return replace(found, code=code, severity=Severity.ERROR, message=message, aliases=())


def _demands(view: SpecIndex, flags: PolicyFlags, target: str | None) -> Iterator[Diagnostic]:
    workflow = view.spec.workflow is not None
    alone = not workflow or target == "agent" or (target is None and "agent" in view.spec.targets)
    if flags.require_human_review and workflow and alone and not agent_asks_somebody(view):
        message = "This environment wants a person to be asked, and a run with target agent asks nobody."
        hint = "Run the workflow, or write review.before at the tools of the root agent."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("agent",), suggestion=hint)
    elif flags.require_human_review and not ((workflow and target == "agent") or asks_somebody(view)):
        message = "This environment wants a person to be asked, and no workflow asks one."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("workflow",), suggestion=hint)
    if flags.require_tool_permissions:
        yield from _unstated(view)
    if flags.deny_unrestricted_tools:
        yield from _unrestricted(view)
    if flags.require_guardrails and not any(_is_guarded(view)):
        message = "This environment wants guardrails, and no agent has one."
        hint = "Add a guardrail to at least one agent."
        yield error("E_ENV_POLICY_GUARDRAILS", message, ("agent", "guardrails"), suggestion=hint)


def _unstated(view: SpecIndex) -> Iterator[Diagnostic]:
    for at in view.agents:
        if at.agent.tools is not None and at.agent.tools.include and at.agent.tools.permissions is None:
            message = f"This environment wants tool permissions, and {at.agent.name} states none."
            hint = "Write tools.permissions: what is not needed is false."
            yield error("E_ENV_POLICY_TOOL_PERMISSIONS", message, (*at.path, "tools", "permissions"), suggestion=hint)


def _unrestricted(view: SpecIndex) -> Iterator[Diagnostic]:
    for at in view.agents:
        if is_unrestricted(at.agent):
            message = f"This environment wants tools to be restricted, and those of {at.agent.name} are not."
            hint = "State permissions without shell and file access, and name the hosts in allowed_domains."
            yield error("E_ENV_POLICY_UNRESTRICTED_TOOLS", message, (*at.path, "tools"), suggestion=hint)


def _is_guarded(view: SpecIndex) -> Iterator[bool]:
    for at in view.agents:
        yield at.agent.guardrails is not None and any(at.agent.guardrails.stages().values())
