"""Summaries of a spec, in the JSON forms of the commands and the service."""

from __future__ import annotations

from collections.abc import Sequence

from kneo.spec.diagnostics import Diagnostic, Severity
from kneo.spec.graph import GraphNode, spec_graph
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import LeafStep

Map = dict[str, object]

REFUSED_HERE = frozenset(
    {
        "W_MODEL_PROVIDER",
        "W_MODEL_NOT_ALLOWED",
        "W_MODEL_HOST",
        "I_MODEL_EXTRA",
        "I_MODEL_KEY",
        "I_MODEL_ADDRESS",
        "I_MCP_EXTRA",
    }
)
"""The codes of findings for which the start of a run on this machine is refused."""


def names_of(spec: Spec | None) -> Map:
    """Return the names of the root agent and workflow; both None where the spec does not match the schema."""
    if spec is None:
        return {"agent_name": None, "workflow_name": None}
    workflow = spec.workflow
    return {
        "agent_name": spec.agent.name,
        "workflow_name": (workflow.name or f"{workflow.type}-workflow") if workflow is not None else None,
    }


def compiled(spec: Spec) -> Map:
    """Return the roots and agents of a spec."""
    return {
        "has_root_agent": True,
        "has_root_workflow": spec.workflow is not None,
        "component_agents": list(spec.components.agents),
    }


def explained(spec: Spec) -> Map:
    """Return the steps of a spec with their gates."""
    names = names_of(spec)
    return {
        "summary": {
            "root_agent": names["agent_name"],
            "root_workflow": names["workflow_name"],
            "component_agents": list(spec.components.agents),
        },
        "steps": [_step(node) for node in spec_graph(spec).nodes],
    }


def linted(findings: Sequence[Diagnostic]) -> Map:
    """Return the findings, and the counts of errors and warnings."""
    counted = worth_a_look(findings)
    errors = sum(found.is_error for found in counted)
    return {
        "clean": not counted,
        "warning_count": len(counted) - errors,
        "error_count": errors,
        "diagnostics": [found.as_json() for found in findings],
    }


def worth_a_look(findings: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return errors and warnings, without remarks."""
    return [found for found in findings if found.severity is not Severity.INFO]


def missing_here(findings: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return the findings about models and libraries that a run here would be refused for."""
    return [found for found in findings if found.code in REFUSED_HERE]


def _step(node: GraphNode) -> Map:
    step = node.step
    review = step.review
    return {
        "id": node.id,
        "kind": node.kind,
        "ref": step.ref if isinstance(step, LeafStep) else None,
        "gates": {place: gate.human if isinstance(gate.human, str) else None for place, gate in review.gates().items()}
        if review is not None
        else {},
    }
