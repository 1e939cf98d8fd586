"""What somebody who signs or promotes a spec wants to know about it, as one map: memory, tools, guardrails, people.

The shape is the published one. ``human_review.gates`` is ours beside it: questions that stand at steps and tools,
those that an environment ``added`` among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kneo.spec.context import NOTHING_KNOWN
from kneo.spec.coverage.environment_gates import gates_around
from kneo.spec.coverage.gates import all_gates
from kneo.spec.coverage.permissions import is_unrestricted
from kneo.spec.diagnostics import Diagnostic, format_path
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.models import LeafStep, Spec

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
"""Findings that are a reason to ask a person."""

Map = dict[str, object]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """A report in both of the forms it is published in.

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
        diagnostics: What was found in it.
    """
    listed = [found.as_json() for found in diagnostics]
    if spec is None:
        return PolicyReport(valid=False, body={"diagnostics": listed})
    view = SpecIndex.of(spec, NOTHING_KNOWN)
    people = _human_review(view, diagnostics)
    steps = people["workflow_steps"]
    body: Map = {
        "version": spec.version,
        "summary": {
            "agent_count": len(view.agents),
            "workflow_count": len(view.workflows),
            "tool_count": len(spec.tools),
            "mcp_tool_count": sum(tool.mcp is not None for tool in spec.tools.values()),
            "human_reviewer_count": len(spec.components.humans),
            "human_review_step_count": len(steps) if isinstance(steps, list) else 0,
            "diagnostic_count": len(diagnostics),
        },
        "memory": {"agents": [_memory(at) for at in view.agents]},
        "tools": {
            "declared": sorted(spec.tools),
            "mcp_imports": [
                {"name": name, "config": tool.mcp.model_dump(exclude_none=True)}
                for name, tool in spec.tools.items()
                if tool.mcp is not None
            ],
            "agent_policies": [_tools(at) for at in view.agents],
        },
        "guardrails": {"agents": [_guardrails(at) for at in view.agents]},
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
    given = at.agent.guardrails.stages() if at.agent.guardrails else {}
    stages = {stage: len(items) for stage, items in given.items() if items}
    return {"agent": format_path(at.path), "configured": bool(stages), "stages": stages}


def _human_review(view: SpecIndex, diagnostics: Sequence[Diagnostic]) -> Map:
    requirements: list[Map] = [
        {"code": found.code, "path": found.path_text, "reason": found.message}
        for found in diagnostics
        if found.code in REVIEW_CODES
    ]
    if not requirements and view.spec.components.humans:
        reason = "People are declared who can be asked."
        requirements.append({"code": "I_HUMAN_REVIEW_CONFIGURED", "path": "components.humans", "reason": reason})
    steps: list[Map] = [
        {"workflow": format_path(at.workflow.path), "step_id": at.step.id, "ref": at.step.ref}
        for at in view.steps
        if isinstance(at.step, LeafStep) and at.step.kind == "human"
    ]
    gates: list[Map] = [
        {"path": format_path(at.path), "human": at.gate.human if isinstance(at.gate.human, str) else None}
        for at in all_gates(view)
    ]
    around = gates_around(view)
    gates += [
        {"path": format_path(at.path), "human": None, "added": one.name}
        for at in view.steps
        for one in around.get(id(at.step), ())
    ]
    return {
        "reviewers": sorted(view.spec.components.humans),
        "workflow_steps": steps,
        "gates": gates,
        "required": bool(requirements),
        "requirements": requirements,
        "missing": any(found.code == "W_HUMAN_APPROVAL_MISSING" for found in diagnostics),
    }
