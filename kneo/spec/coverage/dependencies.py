"""Dependencies between agents, workflows and functions, and the cycles among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic

from kneo.spec.index import Node, Part, SpecIndex
from kneo.spec.models.agent import Agent
from kneo.spec.models.workflow import LeafStep, RouterStep, Step


def dependencies(index: SpecIndex) -> dict[Part, tuple[Part, ...]]:
    """Return the agents and workflows that each agent and workflow runs."""
    needs: dict[Part, list[Part]] = {
        at.part: list(agent_needs(index, at.agent, at.agent.tools.include if at.agent.tools else ()))
        for at in index.agents
    }
    needs |= {at.part: [] for at in index.workflows}
    for at in index.steps:
        needs[at.workflow.part].extend(step_needs(index, at.step))
    return {part: tuple(dict.fromkeys(other for other in others if other in needs)) for part, others in needs.items()}


def step_needs(index: SpecIndex, step: Step) -> Iterator[Part]:
    """Yield the agent or workflow that a step runs."""
    if isinstance(step, LeafStep) and step.kind == "workflow":
        yield "workflow", step.ref
    elif isinstance(step, LeafStep) and step.kind in {"agent", "guardrail"}:
        yield index.agent_part(step.ref)
    elif isinstance(step, RouterStep) and step.selector is not None and step.selector.agent is not None:
        yield index.agent_part(step.selector.agent)


def agent_needs(index: SpecIndex, agent: Agent, tools: Iterable[str]) -> Iterator[Part]:
    """Yield the agents and workflows that an agent runs: as itself, as one of the tools, and as a helper."""
    if agent.as_agent:
        yield "workflow", agent.as_agent
    for name in tools:
        tool = index.spec.tools.get(name)
        if tool is not None and tool.agent:
            yield "agent", tool.agent
    yield from (part for _, part in helpers(index, agent) if part[0] == "agent")


def helpers(index: SpecIndex, agent: Agent) -> Iterator[tuple[str, Part]]:
    """Yield the functions and agents of an agent's memory and guardrails, each with its purpose."""
    memory = (agent.memory.summarizer, agent.memory.retriever) if agent.memory else ()
    for item in memory:
        if item is not None:
            known = item.ref in index.function_names
            yield "memory", ("function", item.ref) if known else index.agent_part(item.ref)
    for guardrails in agent.guardrails.stages().values() if agent.guardrails else ():
        for guardrail in guardrails:
            purpose = f"guardrail {guardrail.id}"
            if guardrail.ref and guardrail.type == "function":
                yield purpose, ("function", guardrail.ref)
            elif guardrail.ref and guardrail.type == "agent":
                yield purpose, index.agent_part(guardrail.ref)


def components(starts: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> Iterator[list[Node]]:
    """Yield the strongly connected components that can be reached, each after those it leads to (Tarjan 1972).

    The search keeps its own stack, so that memory bounds the length of a chain and not the interpreter.
    """
    search = _Search(following)
    for start in starts:
        if start not in search.order:
            search.enter(start)
        while search.calls:
            members = search.advance()
            if members:
                yield members


@dataclass(slots=True)
class _Search(Generic[Node]):
    following: Callable[[Node], Iterable[Node]]
    order: dict[Node, int] = field(default_factory=dict)
    low: dict[Node, int] = field(default_factory=dict)
    path: list[Node] = field(default_factory=list)
    on_path: set[Node] = field(default_factory=set)
    calls: list[tuple[Node, Iterator[Node]]] = field(default_factory=list)

    def enter(self, node: Node) -> None:
        self.order[node] = self.low[node] = len(self.order)
        self.path.append(node)
        self.on_path.add(node)
        self.calls.append((node, iter(self.following(node))))

    def advance(self) -> list[Node]:
        """Follow one edge; return the component that is complete after it, if any."""
        node, ahead = self.calls[-1]
        other = next(ahead, None)
        if other is None:
            return self._leave(node)
        if other not in self.order:
            self.enter(other)
        elif other in self.on_path:
            self.low[node] = min(self.low[node], self.order[other])
        return []

    def _leave(self, node: Node) -> list[Node]:
        self.calls.pop()
        if self.calls:
            caller = self.calls[-1][0]
            self.low[caller] = min(self.low[caller], self.low[node])
        members: list[Node] = []
        while self.low[node] == self.order[node] and node not in members[-1:]:
            members.append(self.path.pop())
        self.on_path.difference_update(members)
        return members
