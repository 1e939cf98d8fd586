"""Exposure of agents and functions: the parts they depend on, permissions, and the privileged calls they reach without a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias

from kneo.spec.coverage.gates import chance, gate_strength, step_gates
from kneo.spec.documents import Path
from kneo.spec.gates import default_rejection
from kneo.spec.index import LocatedStep, Node, Part, SpecIndex, reachable, reached_nodes
from kneo.spec.models.agent import Agent, ToolPermissions, ToolSelection
from kneo.spec.models.human import CALLER, Gate
from kneo.spec.models.spec import Tool
from kneo.spec.models.workflow import GraphWorkflow, LeafStep, RouterStep, Step
from kneo.spec.tool_kinds import Capability


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


def reached_parts(index: SpecIndex, root: Part) -> Iterator[Part]:
    """Yield an agent or a workflow, and every agent and workflow that its run can reach."""
    steps = reached_steps(index)

    def needs(part: Part) -> Iterator[Part]:
        if part[0] == "workflow":
            for at in steps.get(part[1], ()):
                yield from step_needs(index, at.step)
        elif (agent := index.agent_of(part)) is not None:
            yield from agent_needs(index, agent, callable_tools(agent))

    return reachable(root, needs)


def reached_steps(index: SpecIndex) -> Mapping[str, Sequence[LocatedStep]]:
    """Return the steps of each workflow, without disabled and unreachable ones and everything inside them."""
    reached = {at.path: reached_nodes(at.workflow) for at in index.workflows if isinstance(at.workflow, GraphWorkflow)}
    found: dict[str, list[LocatedStep]] = {}
    left_out: set[Path] = set()
    for at in index.steps:
        unreachable = at.role == "node" and at.key is not None and at.key not in reached[at.workflow.path]
        inside = any(at.path[:length] in left_out for length in range(len(at.path)))
        if unreachable or inside or not at.step.enabled:
            left_out.add(at.path)
        else:
            found.setdefault(at.workflow.name or "", []).append(at)
    return found


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


PRIVILEGED: frozenset[Capability] = frozenset({"network", "filesystem_write", "shell", "privileged"})
"""Capabilities that need the approval of a person. Reading files is not among them."""

PERMISSIONS: Mapping[Capability, str] = {
    "network": "allow_network",
    "filesystem_read": "allow_filesystem_read",
    "filesystem_write": "allow_filesystem_write",
    "shell": "allow_shell",
}
"""The permission that each capability needs."""

MAX_NAMED = 5  # links of a chain of calls that a message names


def permissions_of(agent: Agent) -> ToolPermissions | None:
    """Return the agent's tool permissions; None where it states none."""
    return agent.tools.permissions if agent.tools else None


def is_unrestricted(agent: Agent) -> bool:
    """Tell whether an agent with tools has no permissions, or shell or file access, or network access to any host."""
    if agent.tools is None or not agent.tools.include:
        return False
    stated = agent.tools.permissions
    if stated is None:
        return True
    files = stated.allow_filesystem_read or stated.allow_filesystem_write
    return bool(stated.allow_shell or files or (stated.allow_network and not stated.allowed_domains))


def callable_tools(agent: Agent) -> tuple[str, ...]:
    """Return the tools that the agent can call: included, not excluded, and not denied, and the retriever of its memory."""
    memory, tools = agent.memory, agent.tools or ToolSelection()
    excluded = frozenset(tools.exclude)
    included = [name for name in tools.include if name not in excluded]
    if memory is not None and memory.retriever is not None:
        included.append(memory.retriever.ref)
    stated = tools.permissions or ToolPermissions()
    allowed = frozenset(included if stated.allowed_tools is None else stated.allowed_tools)
    allowed -= frozenset(stated.denied_tools)
    return tuple(name for name in dict.fromkeys(included) if name in allowed)


def declared_tools(index: SpecIndex, agent: Agent) -> Iterator[tuple[str, Tool]]:
    """Yield the tools that the agent can call and the spec declares, by name."""
    return ((name, index.spec.tools[name]) for name in callable_tools(agent) if name in index.spec.tools)


def denied_permission(agent: Agent, capability: Capability) -> str | None:
    """Return the permission with which an agent denies its tools a capability; None where it does not."""
    name = PERMISSIONS.get(capability)
    return name if name is not None and getattr(permissions_of(agent), name, None) is False else None


def granted(agent: Agent, tool: Tool) -> tuple[Capability, ...]:
    """Return the capabilities of a tool that the agent does not deny."""
    return tuple(each for each in tool.all_capabilities if denied_permission(agent, each) is None)


@dataclass(frozen=True, slots=True)
class Call:
    """A privileged call, and the calls that lead to it.

    Attributes:
        name: The kind and name of the first link: ``tool deploy``.
        capabilities: The capabilities of the last link; empty before that.
        through: The next link, where this one is not privileged itself.
        weakness: The reason why its gate does not count, where it has one.
    """

    name: str
    capabilities: tuple[Capability, ...] = ()
    through: Call | None = None
    weakness: str | None = None

    def __str__(self) -> str:
        names: list[str] = []
        link = self
        while link.through is not None:
            names.append(link.name)
            link = link.through
        if len(names) >= MAX_NAMED:
            names[MAX_NAMED - 1 :] = ["…"]
        return f"{' → '.join((*names, link.name))} ({', '.join(link.capabilities)})"


def function_call(index: SpecIndex, name: str) -> Call | None:
    """Return the privileged call of a function; None where it is not privileged."""
    capabilities = tuple(each for each in index.capabilities(name) if each in PRIVILEGED)
    return Call(f"function {name}", capabilities) if capabilities else None


@dataclass(frozen=True, slots=True)
class Exposure:
    """One privileged call of an agent without a gate, where there is any, and the agents that it runs without one."""

    call: Call | None
    agents: tuple[Part, ...]


AddedGates: TypeAlias = Callable[[str], Sequence[Gate]]
"""From a tool to the gates that an environment adds before every call of it by one agent."""


def exposure(index: SpecIndex, agent: Agent, known: Mapping[Part, Exposure], added: AddedGates) -> Exposure:
    """Return the exposure of an agent.

    Args:
        index: The spec.
        agent: The agent.
        added: The gates of the environment before its calls.
        known: The exposures of the agents that it runs; one that is missing is in a cycle with it.
    """
    calls: list[Call] = []
    agents: list[tuple[str, Part]] = []
    for name, tool in declared_tools(index, agent):
        guarded, weakness = tool_gate(index, agent, tool, added(name))
        if guarded:
            continue
        capabilities = privileged_capabilities(agent, tool)
        if capabilities:
            calls.append(Call(f"tool {name}", capabilities, None, weakness))
        elif tool.agent:
            agents.append((f"tool {name}", ("agent", tool.agent)))
    for purpose, part in helpers(index, agent):
        call = function_call(index, part[1]) if part[0] == "function" else None
        if call is not None:
            calls.append(Call(purpose, (), call))
        elif part[0] == "agent":
            agents.append((purpose, part))
    indirect = (Call(purpose, (), inner.call) for purpose, part in agents if (inner := known.get(part)) and inner.call)
    return Exposure(next(iter(calls), None) or next(indirect, None), tuple(part for _, part in agents))


def tool_gate(
    index: SpecIndex, agent: Agent, tool: Tool, added: Sequence[Gate], *, always: bool = False
) -> tuple[bool, str | None]:
    """Tell whether every call of a tool needs an approval; else the reason why the tool's gate does not count.

    Args:
        index: The spec.
        agent: The agent that calls it.
        tool: The tool.
        added: The gates of the environment before its calls.
        always: Whether only gates count that ask about every call. Else an expression counts too at a tool that is privileged
            itself: the environment in force has to accept each call that is not asked about.
    """
    weakness = None
    is_checked = not always and tool.agent is None and bool(privileged_capabilities(agent, tool))
    for gate in added:
        strength = gate_strength(gate, "before", {}, default_rejection("tool"), is_checked=is_checked)
        if strength.guards:
            return True, None
        weakness = strength.weakness
    for position, gate in step_gates(tool).items():
        if gate.human == CALLER:
            weakness = "asks the program that makes the call, which approves nothing"
            continue
        humans = index.spec.components.humans
        strength = gate_strength(gate, position, humans, default_rejection("tool"), is_checked=is_checked)
        # A person carries out a call at external, so only a call without a question happens without a person.
        if strength.guards or (position == "external" and chance(gate, is_checked=is_checked) is None):
            return True, None
        weakness = strength.weakness or weakness
    return False, weakness


def privileged_capabilities(agent: Agent, tool: Tool) -> tuple[Capability, ...]:
    """Return the granted privileged capabilities, without network access that is limited to named hosts."""
    stated = permissions_of(agent)
    hosts_named = stated is not None and bool(stated.allowed_domains)
    return tuple(
        each for each in granted(agent, tool) if each in PRIVILEGED and not (each == "network" and hosts_named)
    )
