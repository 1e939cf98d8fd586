"""Gates of an environment: the steps of a spec that they guard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from kneo.spec.coverage.exposure import agent_needs, callable_tools, declared_tools, granted, helpers
from kneo.spec.index import LocatedStep, Part, SpecIndex, reachable
from kneo.spec.models.environment import EnvironmentGate, GatedSpec, Match
from kneo.spec.models.spec import Tool
from kneo.spec.models.workflow import LeafStep, RouterStep
from kneo.spec.policy import ToolNames
from kneo.spec.tool_kinds import Capability


@dataclass(frozen=True, slots=True)
class _Activity:
    """What a step runs, as patterns match it."""

    ref: str | None = None
    tools: frozenset[str] = frozenset()
    capabilities: frozenset[Capability] = frozenset()


@dataclass(slots=True)
class _Activities:
    """The activities of a spec; those of each agent are computed once."""

    index: SpecIndex
    _agents: dict[str, _Activity] = field(default_factory=dict)

    def of_step(self, at: LocatedStep) -> _Activity:
        match at.step:
            case LeafStep(kind="agent" | "guardrail", ref=name):
                return self.of_agent(name)
            case LeafStep(kind="function", ref=name):
                return self._function(name)
            case LeafStep(ref=name):
                return _Activity(name)
            case RouterStep() if at.step.selector is not None and at.step.selector.function is not None:
                return self._function(at.step.selector.function)
            case RouterStep() if at.step.selector is not None and at.step.selector.agent is not None:
                return self.of_agent(at.step.selector.agent)
            case _:
                return _Activity()

    def _function(self, name: str) -> _Activity:
        return _Activity(name, capabilities=frozenset(self.index.capabilities(name)))

    def of_agent(self, name: str) -> _Activity:
        if name not in self._agents:
            self._agents[name] = self._closure(name)
        return self._agents[name]

    def _closure(self, name: str) -> _Activity:
        """Collect the tools and capabilities of an agent and of all agents that it runs."""
        tools: set[str] = set()
        capabilities: set[Capability] = set()
        for part in reachable(self.index.agent_part(name), self._agents_of):
            agent = self.index.agent_of(part)
            if agent is None:
                continue
            for called in callable_tools(agent):
                tools.update(_names(called, self.index.spec.tools.get(called)))
            for _, tool in declared_tools(self.index, agent):
                capabilities.update(granted(agent, tool))
            for _, (kind, helper) in helpers(self.index, agent):
                capabilities.update(self.index.capabilities(helper) if kind == "function" else ())
        return _Activity(name, frozenset(tools), frozenset(capabilities))

    def _agents_of(self, part: Part) -> Iterator[Part]:
        agent = self.index.agent_of(part)
        needs = agent_needs(self.index, agent, callable_tools(agent)) if agent is not None else iter(())
        return (other for other in needs if other[0] == "agent")


def _gates(index: SpecIndex) -> tuple[EnvironmentGate, ...]:
    return index.spec.environment_gates if isinstance(index.spec, GatedSpec) else ()


def gates_around(index: SpecIndex) -> Mapping[int, tuple[EnvironmentGate, ...]]:
    """Return the environment's gates around each step, the outermost first.

    Returns:
        The gates by the identity (``id``) of the step: two equal steps have gates of their own.
    """
    gates = _gates(index)
    if not gates:
        return {}
    activities = _Activities(index)
    found = {id(at.step): _matching(gates, at, activities.of_step(at)) for at in index.steps if at.step.kind != "human"}
    return {step: matching for step, matching in found.items() if matching}


def gates_around_agent(index: SpecIndex) -> tuple[EnvironmentGate, ...]:
    """Return the environment's gates around a run of the root agent alone, which is in no workflow."""
    gates, name = _gates(index), index.spec.agent.name
    activity = _Activities(index).of_agent(name) if gates else _Activity()
    return tuple(gate for gate in gates if not gate.match.workflows and _fits(gate.match, "agent", name, activity))


def gates_of_calls(index: SpecIndex) -> Mapping[int, tuple[EnvironmentGate, ...]]:
    """Return the environment's gates at tool calls, by the identity (``id``) of the steps whose agents make the calls."""
    gates = _call_gates(index)
    found = {
        id(at.step): tuple(
            gate
            for gate in gates
            if _any(gate.match.workflows, [_workflow(at)]) and _any(gate.match.steps, [at.id_path])
        )
        for at in (index.steps if gates else ())
    }
    return {step: matching for step, matching in found.items() if matching}


def gates_of_calls_of_agent(index: SpecIndex) -> tuple[EnvironmentGate, ...]:
    """Return the environment's gates at the tool calls of a run of the root agent alone, which is in no workflow."""
    name = index.spec.agent.name
    return tuple(gate for gate in _call_gates(index) if not gate.match.workflows and _any(gate.match.steps, [name]))


def gates_at_call(index: SpecIndex, agent: str, tool: str) -> tuple[EnvironmentGate, ...]:
    """Return the environment's gates at every call of a tool by an agent, wherever the agent runs.

    A gate that names steps or workflows is not among them: the agent may run elsewhere.
    """
    return tuple(
        gate
        for gate in _call_gates(index)
        if not (gate.match.steps or gate.match.workflows)
        and matches_call(gate.match, agent, tool, index.spec.tools.get(tool))
    )


def gates_at_calls_of(index: SpecIndex, tool: str) -> tuple[EnvironmentGate, ...]:
    """Return the environment's gates at calls of a tool by any agent that can make them, wherever the agent runs."""
    callers = [at.name or index.spec.agent.name for at in index.agents if tool in callable_tools(at.agent)]
    declared = index.spec.tools.get(tool)
    return tuple(
        gate for gate in _call_gates(index) if any(matches_call(gate.match, agent, tool, declared) for agent in callers)
    )


def matches_call(match: Match, agent: str, name: str, tool: Tool | None) -> bool:
    """Tell whether a gate at tool calls matches the call of a tool by an agent, as far as it does not name places.

    Args:
        match: The calls of the gate.
        agent: The name of the agent.
        name: The name of the tool.
        tool: The declaration of the tool. The capabilities of one that the spec does not declare are unknown: it may have
            each of them.
    """
    capable = not match.capabilities or tool is None or bool(set(match.capabilities) & set(tool.all_capabilities))
    return capable and _any(match.refs, [agent]) and _any(match.tools, _names(name, tool))


def _call_gates(index: SpecIndex) -> tuple[EnvironmentGate, ...]:
    return tuple(gate for gate in _gates(index) if "tool" in gate.match.kinds and gate.before is not None)


def guarded_steps(index: SpecIndex, name: str) -> list[str]:
    """Return what one of the environment's gates guards: id paths of steps, and calls as ``agent → tool``."""
    around = gates_around(index)
    steps = [at.id_path for at in index.steps if any(gate.name == name for gate in around.get(id(at.step), ()))]
    alone = index.spec.workflow is None and any(gate.name == name for gate in gates_around_agent(index))
    return [*([index.spec.agent.name] if alone else steps), *_guarded_calls(index, name)]


def _guarded_calls(index: SpecIndex, name: str) -> Iterator[str]:
    gates = [gate for gate in _call_gates(index) if gate.name == name]
    for at in index.agents if gates else ():
        agent = at.name or index.spec.agent.name
        for tool in callable_tools(at.agent):
            if any(matches_call(gate.match, agent, tool, index.spec.tools.get(tool)) for gate in gates):
                yield f"{agent} → {tool}"


def _matching(gates: Sequence[EnvironmentGate], at: LocatedStep, activity: _Activity) -> tuple[EnvironmentGate, ...]:
    return tuple(
        gate
        for gate in gates
        if _any(gate.match.workflows, [_workflow(at)]) and _fits(gate.match, at.step.kind, at.id_path, activity)
    )


def _workflow(at: LocatedStep) -> str:
    return at.workflow.name or at.workflow.workflow.name or ""


def _fits(match: Match, kind: str, id_path: str, activity: _Activity) -> bool:
    return (
        (kind in match.kinds if match.kinds else activity.ref is not None)
        and _any(match.steps, [id_path])
        and _any(match.refs, [activity.ref or ""])
        and _any(match.tools, activity.tools)
        and (not match.capabilities or bool(activity.capabilities & set(match.capabilities)))
    )


def _names(name: str, tool: Tool | None) -> tuple[str, ...]:
    """Return every name by which a gate knows a tool."""
    names = tool.names(name) if tool is not None else ToolNames(name)
    return names.own, *names.called, *names.reached


def _any(patterns: Sequence[str], names: Iterable[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
