"""What running an agent or a function can do beyond computing, as far as no gate stands at the call itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kneo.spec.coverage.dependencies import Part, agent_part
from kneo.spec.coverage.gate_strength import judge_gate
from kneo.spec.coverage.gates import tool_gates
from kneo.spec.coverage.permissions import allows, callable_tools, permissions_of
from kneo.spec.gates import default_rejection
from kneo.spec.index import SpecIndex
from kneo.spec.models import Agent, Tool
from kneo.spec.models.tools import Capability

PRIVILEGED: frozenset[Capability] = frozenset({"network", "filesystem_write", "shell", "privileged"})
"""Capabilities whose use somebody must agree to. Reading files is not among them."""

MAX_NAMED = 5  # links of a chain of calls that a message names


@dataclass(frozen=True, slots=True)
class Call:
    """A privileged call: what is called, and through what.

    Attributes:
        name: The kind and name of what is called first: ``tool deploy``.
        capabilities: What the last link of the chain can do; empty before that.
        through: What the call leads to, where it is not privileged itself.
        weakness: Why the gate at it does not count, where it has one.
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


def function_call(view: SpecIndex, name: str) -> Call | None:
    """Return the privileged call that running a function is, or None."""
    function = view.spec.components.functions.get(name)
    capabilities = _privileged(function.capabilities) if function else ()
    return Call(f"function {name}", capabilities) if capabilities else None


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a run of an agent reaches without a gate at the call.

    Attributes:
        call: One privileged call, where there is any.
        agents: Agents it may run as tools, for memory or as guardrails.
    """

    call: Call | None
    agents: tuple[Part, ...]


def exposure(view: SpecIndex, agent: Agent, known: Mapping[Part, Exposure]) -> Exposure:
    """Find out what an agent can call.

    Args:
        view: The spec.
        agent: The agent.
        known: The same for the agents it needs; one that is missing stands in a circle with it.
    """
    own: list[Call] = []
    agents: list[tuple[str, Part]] = []
    for name in callable_tools(agent):
        tool = view.spec.tools.get(name)
        if tool is None:
            continue  # the platform's own: what it can do is not declared here
        gated, weakness = _gate(view, tool)
        if gated:
            continue
        capabilities = _dangers(agent, tool)
        if capabilities:
            own.append(Call(f"tool {name}", capabilities, None, weakness))
        elif tool.agent:
            agents.append((f"tool {name}", ("agent", tool.agent)))
    for what, name in helpers(agent):
        call = function_call(view, name)
        if call is not None:
            own.append(Call(what, (), call))
        elif name not in view.function_names:
            agents.append((what, agent_part(view, name)))
    return Exposure(next(iter(own), None) or _indirect(agents, known), tuple(part for _, part in agents))


def _indirect(agents: Sequence[tuple[str, Part]], known: Mapping[Part, Exposure]) -> Call | None:
    for what, part in agents:
        inner = known[part].call if part in known else None
        if inner is not None:
            return Call(what, (), inner)
    return None


def helpers(agent: Agent) -> Iterator[tuple[str, str]]:
    """Yield what else runs when an agent does: for what, and the name of a function or an agent."""
    memory = agent.memory
    if memory and memory.summarizer:
        yield "memory", memory.summarizer.ref
    if memory and memory.retriever:
        yield "memory", memory.retriever.ref
    for items in agent.guardrails.stages().values() if agent.guardrails else ():
        for item in items:
            if item.ref and item.type in {"function", "agent"}:
                yield f"guardrail {item.id}", item.ref


def _gate(view: SpecIndex, tool: Tool) -> tuple[bool, str | None]:
    """Tell whether somebody agrees to each call of a tool; otherwise why the gate it has does not count."""
    weakness = None
    for position, gate in tool_gates(tool).items():
        verdict = judge_gate(gate, position, view.spec.components.humans, default_reject=default_rejection("tool"))
        if position == "external" or verdict.guards:
            return True, None
        weakness = verdict.weakness
    return False, weakness


def _privileged(capabilities: Sequence[Capability]) -> tuple[Capability, ...]:
    return tuple(capability for capability in capabilities if capability in PRIVILEGED)


def granted(agent: Agent, tool: Tool) -> tuple[Capability, ...]:
    """Return what a tool may do as far as the agent's permissions do not refuse it anyway."""
    given = permissions_of(agent)
    return tuple(capability for capability in tool.capabilities if allows(given, capability) is not False)


def _dangers(agent: Agent, tool: Tool) -> tuple[Capability, ...]:
    """Leave out what nobody has to agree to, and network access that is held to named hosts."""
    given = permissions_of(agent)
    hosts_named = given is not None and bool(given.allowed_domains)
    return tuple(
        capability for capability in _privileged(granted(agent, tool)) if not (capability == "network" and hosts_named)
    )
