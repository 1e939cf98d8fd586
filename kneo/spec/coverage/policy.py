"""Environment policies: violations of a spec, and the policy report for approvers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kneo.spec.coverage.environment_gates import gates_around, gates_at_call
from kneo.spec.coverage.exposure import callable_tools, is_unrestricted
from kneo.spec.coverage.gates import all_gates
from kneo.spec.coverage.guardrails import is_guarded
from kneo.spec.coverage.questions import agent_asks_person, asks_person
from kneo.spec.diagnostics import Diagnostic, Severity, error, format_path
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import LeafStep
from kneo.spec.policy_flags import PolicyFlags


def check_policy(
    spec: Spec, diagnostics: Sequence[Diagnostic], flags: PolicyFlags, *, target: str | None = None
) -> tuple[Diagnostic, ...]:
    """Return the violations of a policy by a spec.

    Args:
        spec: The spec, in normal form.
        diagnostics: The findings of the rules.
        flags: The policy.
        target: The target of the run: ``workflow`` or ``agent``; None for every target of a released bundle.

    Returns:
        The violations, in the published order; all of them are errors.
    """
    if not flags.enabled:
        return ()
    return (*_findings(diagnostics, flags), *_demands(SpecIndex.of(spec), flags, target))


def _findings(diagnostics: Sequence[Diagnostic], flags: PolicyFlags) -> Iterator[Diagnostic]:
    blocked = frozenset(flags.blocked_diagnostic_codes)
    for found in diagnostics:
        if blocked & {found.code, *found.aliases}:
            yield _violation("E_ENV_POLICY_DIAGNOSTIC", f"{found.code} is not accepted here: {found.message}", found)
        if flags.fail_on_warnings and found.severity is Severity.WARNING:
            yield _violation("E_ENV_POLICY_WARNING", f"Warnings are not accepted here: {found.message}", found)


def _violation(code: str, message: str, found: Diagnostic) -> Diagnostic:
    """Turn a finding into a violation at the same location."""
    return replace(found, code=code, severity=Severity.ERROR, message=message, aliases=())


def _demands(index: SpecIndex, flags: PolicyFlags, target: str | None) -> Iterator[Diagnostic]:
    workflow = index.spec.workflow is not None
    alone = not workflow or target == "agent" or (target is None and "agent" in index.spec.targets)
    if flags.require_human_review and workflow and alone and not agent_asks_person(index):
        message = "This environment requires human review, and a run with target agent asks no person."
        hint = "Run the workflow, or write review.before at the tools of the root agent."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("agent",), suggestion=hint)
    elif flags.require_human_review and not ((workflow and target == "agent") or asks_person(index)):
        message = "This environment requires human review, and no workflow asks a person."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("workflow",), suggestion=hint)
    if flags.require_tool_permissions:
        yield from _unstated(index)
    if flags.deny_unrestricted_tools:
        yield from _unrestricted(index)
    if flags.require_guardrails and not is_guarded(index, target):
        message = "This environment requires guardrails, and none runs."
        hint = "Add a guardrail to an agent that runs, or a step of kind guardrail."
        yield error("E_ENV_POLICY_GUARDRAILS", message, ("agent", "guardrails"), suggestion=hint)


def _unstated(index: SpecIndex) -> Iterator[Diagnostic]:
    for at in index.agents:
        if at.agent.tools is not None and at.agent.tools.include and at.agent.tools.permissions is None:
            message = f"This environment requires tool permissions, and {at.agent.name} states none."
            hint = "Write tools.permissions: what is not needed is false."
            yield error("E_ENV_POLICY_TOOL_PERMISSIONS", message, (*at.path, "tools", "permissions"), suggestion=hint)


def _unrestricted(index: SpecIndex) -> Iterator[Diagnostic]:
    for at in index.agents:
        if is_unrestricted(at.agent):
            message = f"This environment requires restricted tools, and those of {at.agent.name} are unrestricted."
            hint = "State permissions without shell and file access, and name the hosts in allowed_domains."
            yield error("E_ENV_POLICY_UNRESTRICTED_TOOLS", message, (*at.path, "tools"), suggestion=hint)


REVIEW_CODES = frozenset(
    {
        "E_UNSAFE_TOOL_IMPORT",
        "E_UNSAFE_FUNCTION_IMPORT",
        "E_PRIVILEGED_UNGATED",
        "W_TOOL_NETWORK_UNRESTRICTED",
        "W_TOOL_SHELL_ALLOWED",
        "W_TOOL_FILESYSTEM_WRITE_ALLOWED",
        "W_TOOL_FILESYSTEM_READ_ALLOWED",
        "W_TOOL_POLICY_UNRESTRICTED",
    }
)
"""Findings that are a reason for human review."""

Map = dict[str, object]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """A policy report, in its two published forms.

    Attributes:
        valid: Whether the spec has the right shape; errors of meaning are among its diagnostics.
        body: Everything but ``valid``.
    """

    valid: bool
    body: Map

    def flat(self) -> Map:
        """Return the form of the command line."""
        return {"valid": self.valid, **self.body}

    def nested(self) -> Map:
        """Return the form of the service."""
        return {"valid": self.valid, "report": self.flat()}


def policy_report(spec: Spec | None, diagnostics: Sequence[Diagnostic]) -> PolicyReport:
    """Report on a spec.

    Args:
        spec: The spec in normal form; None where its shape is wrong, and the report holds the diagnostics only.
        diagnostics: Its findings.
    """
    listed = [found.as_json() for found in diagnostics]
    if spec is None:
        return PolicyReport(valid=False, body={"diagnostics": listed})
    index = SpecIndex.of(spec)
    people = _human_review(index, diagnostics)
    steps = people["workflow_steps"]
    body: Map = {
        "version": spec.version,
        "summary": {
            "agent_count": len(index.agents),
            "workflow_count": len(index.workflows),
            "tool_count": len(spec.tools),
            "mcp_tool_count": sum(tool.mcp is not None for tool in spec.tools.values()),
            "human_reviewer_count": len(spec.components.humans),
            "human_review_step_count": len(steps) if isinstance(steps, list) else 0,
            "diagnostic_count": len(diagnostics),
        },
        "memory": {"agents": [_memory(at) for at in index.agents]},
        "tools": {
            "declared": sorted(spec.tools),
            "mcp_imports": [
                {"name": name, "config": tool.mcp.model_dump(exclude_none=True)}
                for name, tool in spec.tools.items()
                if tool.mcp is not None
            ],
            "agent_policies": [_tools(at) for at in index.agents],
        },
        "guardrails": {"agents": [_guardrails(at) for at in index.agents]},
        "human_review": people,
        "diagnostics": listed,
    }
    return PolicyReport(valid=True, body=body)


def _memory(at: LocatedAgent) -> Map:
    memory = at.agent.memory
    config = memory.model_dump(exclude_none=True) if memory else {}
    policy = memory.policy if memory else None
    return {"agent": format_path(at.path), "configured": memory is not None, "policy": policy, "config": config}


def _tools(at: LocatedAgent) -> Map:
    selected = at.agent.tools
    stated = selected.permissions if selected else None
    return {
        "agent": format_path(at.path),
        "include": list(selected.include) if selected else [],
        "exclude": list(selected.exclude) if selected else [],
        "permissions": None if stated is None else stated.model_dump(mode="json"),
        "unrestricted": is_unrestricted(at.agent),
    }


def _guardrails(at: LocatedAgent) -> Map:
    stated = at.agent.guardrails.stages() if at.agent.guardrails else {}
    stages = {stage: len(items) for stage, items in stated.items() if items}
    return {"agent": format_path(at.path), "configured": bool(stages), "stages": stages}


def _human_review(index: SpecIndex, diagnostics: Sequence[Diagnostic]) -> Map:
    requirements: list[Map] = [
        {"code": found.code, "path": found.path_text, "reason": found.message}
        for found in diagnostics
        if found.code in REVIEW_CODES
    ]
    if not requirements and index.spec.components.humans:
        reason = "People are declared who can be asked."
        requirements.append({"code": "I_HUMAN_REVIEW_CONFIGURED", "path": "components.humans", "reason": reason})
    steps: list[Map] = [
        {"workflow": format_path(at.workflow.path), "step_id": at.step.id, "ref": at.step.ref}
        for at in index.steps
        if isinstance(at.step, LeafStep) and at.step.kind == "human"
    ]
    gates: list[Map] = [
        {"path": format_path(at.path), "human": at.gate.human if isinstance(at.gate.human, str) else None}
        for at in all_gates(index)
    ]
    around = gates_around(index)
    gates += [
        {"path": format_path(at.path), "human": None, "added": one.name}
        for at in index.steps
        for one in around.get(id(at.step), ())
    ]
    gates += [
        {"path": format_path((*at.path, "tools", tool)), "human": None, "added": one.name}
        for at in index.agents
        for tool in callable_tools(at.agent)
        for one in gates_at_call(index, at.name or index.spec.agent.name, tool)
    ]
    return {
        "reviewers": sorted(index.spec.components.humans),
        "workflow_steps": steps,
        "gates": gates,
        "required": bool(requirements),
        "requirements": requirements,
        "missing": any(found.code == "W_HUMAN_APPROVAL_MISSING" for found in diagnostics),
    }
