"""Guardrails of a spec that run: those of agents that a run reaches, at stages that these agents have."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.questions import reached_parts, reached_steps
from kneo.spec.index import ROOT, ROOT_WORKFLOW, Part, SpecIndex
from kneo.spec.models.agent import Agent, Guardrail

DUMMY = "dummy"
"""The provider that answers once, with its input."""

_CONFIG = {"keyword": "keywords", "regex": "patterns"}


def is_guarded(index: SpecIndex, target: str | None = None) -> bool:
    """Tell whether a run meets a guardrail, of an agent or as a step.

    Args:
        index: The spec.
        target: What runs: ``workflow`` or ``agent``; None for everything that can run.
    """
    has_workflow = index.spec.workflow is not None
    roots = []
    if has_workflow and target != "agent":
        roots.append(ROOT_WORKFLOW)
    if not has_workflow or target == "agent" or (target is None and "agent" in index.spec.targets):
        roots.append(ROOT)
    return all(any(_guards(index, part) for part in reached_parts(index, root)) for root in roots)


def _guards(index: SpecIndex, part: Part) -> bool:
    if part[0] == "workflow":
        return any(at.step.kind == "guardrail" for at in reached_steps(index).get(part[1], ()))
    agent = index.agent_of(part)
    return agent is not None and any(running_guardrails(agent))


def running_guardrails(agent: Agent) -> Iterator[tuple[str, Guardrail]]:
    """Yield the guardrails that an agent runs, with their stages; one that never matches anything does not run."""
    for stage, items in agent.guardrails.stages().items() if agent.guardrails is not None else ():
        if stage == "tool" and not calls_tools(agent):
            continue
        for item in items:
            key = _CONFIG.get(item.type or "")
            if item.config.get(key) if key is not None else item.ref:
                yield stage, item


def calls_tools(agent: Agent) -> bool:
    """Tell whether an agent can call tools: it is offered some, and its strategy and provider call them."""
    offered = agent.tools is not None and set(agent.tools.include) - set(agent.tools.exclude)
    is_dummy = agent.model is not None and agent.model.provider == DUMMY
    in_rounds = agent.strategy is not None and agent.strategy.type != "simple"
    return bool(offered) and not is_dummy and in_rounds
