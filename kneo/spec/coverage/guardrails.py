"""Guardrails of a spec that run: those of agents that a run reaches, at stages that these agents have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.coverage.questions import reached_parts, reached_steps
from kneo.spec.index import ROOT, ROOT_WORKFLOW, Part, SpecIndex
from kneo.spec.models.agent import Agent, Guardrail

DUMMY = "dummy"
"""The provider that answers once, with its input."""

_BY_AGENT = frozenset({"agent", "guardrail"})
"""The kinds of steps that an agent executes."""

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


@dataclass(frozen=True, slots=True)
class GuardrailPlace:
    """A guardrail that runs, and where: the steps that execute its agent, and the tools that call it."""

    agent: str
    stage: str
    guardrail: Guardrail
    steps: tuple[str, ...]
    tools: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "agent": self.agent,
            "stage": self.stage,
            "id": self.guardrail.id,
            "type": self.guardrail.type,
            "action": self.guardrail.action,
            "target": self.guardrail.target,
            "steps": list(self.steps),
            "tools": list(self.tools),
        }


def guardrail_places(index: SpecIndex) -> Iterator[GuardrailPlace]:
    """Yield the guardrails that a run can meet, each with the steps and the tools of its agent."""
    root = ROOT_WORKFLOW if index.spec.workflow is not None else ROOT
    parts = list(reached_parts(index, root))
    steps = reached_steps(index)
    own = [at for part in parts if part[0] == "workflow" for at in steps.get(part[1], ())]
    agents = [agent for part in parts if (agent := index.agent_of(part)) is not None]
    called = {name for agent in agents for name in callable_tools(agent)}
    for part in parts:
        agent = index.agent_of(part)
        if agent is None:
            continue
        names = {part[1]} if part != ROOT else {agent.name}
        at_steps = tuple(
            at.id_path for at in own if at.step.kind in _BY_AGENT and getattr(at.step, "ref", None) in names
        )
        tools = tuple(name for name, tool in index.spec.tools.items() if name in called and tool.agent in names)
        for stage, guardrail in running_guardrails(agent):
            if stage != "workflow" or at_steps or part == root:
                yield GuardrailPlace(agent.name, stage, guardrail, at_steps, tools)
