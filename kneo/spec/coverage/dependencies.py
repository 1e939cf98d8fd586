"""Components that need themselves, at any depth: through workflows, agents, tools, memory and guardrails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kneo.spec.coverage.components import components
from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.index import SpecIndex
from kneo.spec.models import Agent, LeafStep

ROOT = ("agent", "")
"""The root agent, which is no component and may still be run by its name."""

MAX_NAMED = 12  # parts of a round that a message names

Part = tuple[str, str]


def build_cycles(view: SpecIndex) -> Iterator[Diagnostic]:
    """No component needs itself to be built.

    A workflow that runs itself in a step of its own has a code of its own and is left out here.
    """
    needs = dependencies(view)
    for members in components(needs, lambda part: needs[part]):
        part = members[0]
        if len(members) > 1:
            message = f"These need each other without end: {_round(members, needs.__getitem__)}."
        elif part in needs[part] and part[0] == "agent":
            message = f"The {_called(part, view)} needs itself."
        else:
            continue
        yield error("E_BUILD_CYCLE", message, ("components",), suggestion="Take one of them out of the round.")


def dependencies(view: SpecIndex) -> dict[Part, tuple[Part, ...]]:
    """Return what each agent and workflow needs: pairs of kind and name."""
    needs: dict[Part, list[Part]] = {}
    for agent in view.agents:
        needs[ROOT if agent.name is None else ("agent", agent.name)] = list(_of_agent(view, agent.agent))
    for workflow in view.workflows:
        needs[("workflow", workflow.name or "")] = []
    for at in view.steps:
        if isinstance(at.step, LeafStep):
            needs[("workflow", at.workflow.name or "")].extend(_of_step(view, at.step))
    return {part: tuple(dict.fromkeys(other for other in others if other in needs)) for part, others in needs.items()}


def _of_step(view: SpecIndex, step: LeafStep) -> Iterator[Part]:
    if step.kind == "workflow" and step.ref:
        yield "workflow", step.ref
    elif step.kind in {"agent", "guardrail"}:
        yield agent_part(view, step.ref)


def agent_part(view: SpecIndex, name: str) -> Part:
    """Return which agent a name means: a component, or else the root agent."""
    return ("agent", name) if name in view.spec.components.agents or name != view.spec.agent.name else ROOT


def _of_agent(view: SpecIndex, agent: Agent) -> Iterator[Part]:
    if agent.as_agent:
        yield "workflow", agent.as_agent
    for name in agent.tools.include if agent.tools else ():
        tool = view.spec.tools.get(name)
        if tool is not None and tool.agent:
            yield "agent", tool.agent
    memory = (agent.memory.summarizer, agent.memory.retriever) if agent.memory else ()
    for part in memory:
        if part is not None and part.ref not in view.function_names:
            yield agent_part(view, part.ref)
    for items in agent.guardrails.stages().values() if agent.guardrails else ():
        for item in items:
            if item.type == "agent" and item.ref:
                yield agent_part(view, item.ref)


def _round(members: list[Part], needs: Callable[[Part], tuple[Part, ...]]) -> str:
    """Walk one round through the members, from the first that was met; long ones are shortened."""
    inside = set(members)
    way: dict[Part, int] = {}
    part = members[-1]
    while part not in way:
        way[part] = len(way)
        part = next(other for other in needs(part) if other in inside)
    names = [_plain(other) for other in list(way)[way[part] :]]
    if len(names) > MAX_NAMED:
        names[MAX_NAMED - 1 :] = [f"… {len(names) - MAX_NAMED + 1} more …"]
    return " → ".join((*names, names[0]))


def _plain(part: Part) -> str:
    return f"{part[0]} {part[1]}" if part[1] else "the root agent"


def _called(part: Part, view: SpecIndex) -> str:
    return f"agent {part[1] or view.spec.agent.name}"
