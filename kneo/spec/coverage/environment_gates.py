"""Which steps an environment's questions stand around."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from kneo.spec.coverage.exposure import granted, helpers
from kneo.spec.coverage.permissions import callable_tools
from kneo.spec.index import LocatedStep, SpecIndex
from kneo.spec.models import Agent, LeafStep, RouterStep
from kneo.spec.models.environment_gates import EnvironmentGate, GatedSpec, Match
from kneo.spec.models.tools import Capability


@dataclass(frozen=True, slots=True)
class _Doing:
    """What a step does itself, as patterns see it."""

    ref: str | None = None
    tools: frozenset[str] = frozenset()
    capabilities: frozenset[Capability] = frozenset()


@dataclass(slots=True)
class _Reach:
    """What running agents and functions can do, each found out once."""

    view: SpecIndex
    _known: dict[str, _Doing] = field(default_factory=dict)

    def step(self, at: LocatedStep) -> _Doing:
        step = at.step
        match step:
            case LeafStep(kind="function"):
                return self.function(step.ref)
            case LeafStep(kind="agent" | "guardrail"):
                return self.agent(step.ref)
            case LeafStep():
                return _Doing(step.ref)
            case RouterStep() if step.selector is not None and step.selector.function is not None:
                return self.function(step.selector.function)
            case _:
                return _Doing()

    def function(self, name: str) -> _Doing:
        known = self.view.spec.components.functions.get(name)
        return _Doing(name, capabilities=frozenset(known.capabilities if known else ()))

    def agent(self, name: str) -> _Doing:
        if name not in self._known:
            found = self.view.agent_named(name)
            self._known[name] = self._all_of(name, found) if found is not None else _Doing(name)
        return self._known[name]

    def _all_of(self, name: str, agent: Agent) -> _Doing:
        """Look through an agent and those that it may run."""
        spec = self.view.spec
        tools: set[str] = set()
        capabilities: set[Capability] = set()
        seen = {name}
        ahead = [agent]
        while ahead:
            one = ahead.pop()
            others: list[str] = []
            for tool_name in callable_tools(one):
                tools.add(tool_name)
                tool = spec.tools.get(tool_name)
                if tool is not None:
                    capabilities.update(granted(one, tool))
                    others += [tool.agent] if tool.agent else []
            for _, helper in helpers(one):
                function = spec.components.functions.get(helper)
                if function is not None:
                    capabilities.update(function.capabilities)
                else:
                    others.append(helper)
            for other in others:
                found = self.view.agent_named(other)
                if found is not None and other not in seen:
                    seen.add(other)
                    ahead.append(found)
        return _Doing(name, frozenset(tools), frozenset(capabilities))


def added_gates(view: SpecIndex) -> tuple[EnvironmentGate, ...]:
    """Return the questions that come with a spec from an environment."""
    return view.spec.environment_gates if isinstance(view.spec, GatedSpec) else ()


def gates_around(view: SpecIndex) -> Mapping[int, tuple[EnvironmentGate, ...]]:
    """Find the questions around each step, the outermost first.

    Returns:
        Them by the identity (``id``) of the step: of two steps that look alike each has its own place.
    """
    gates = added_gates(view)
    if not gates:
        return {}
    reach = _Reach(view)
    found = {id(at.step): _matching(gates, at, reach.step(at)) for at in view.steps if at.step.kind != "human"}
    return {step: around for step, around in found.items() if around}


def gates_around_agent(view: SpecIndex) -> tuple[EnvironmentGate, ...]:
    """Find the questions around a run of the root agent alone, which stands in no workflow."""
    gates = added_gates(view)
    name = view.spec.agent.name
    doing = _Reach(view).agent(name) if gates else _Doing()
    return tuple(
        one
        for one in gates
        if not one.match.workflows and _kind_fits(one.match, "agent", doing) and _fits(one.match, name, doing)
    )


def places_around(view: SpecIndex, name: str) -> list[str]:
    """Name the steps that one of the questions stands around, as people write them."""
    around = gates_around(view)
    workflow = [at.place for at in view.steps if any(one.name == name for one in around.get(id(at.step), ()))]
    alone = view.spec.workflow is None and any(one.name == name for one in gates_around_agent(view))
    return [view.spec.agent.name] if alone else workflow


def _matching(gates: Sequence[EnvironmentGate], at: LocatedStep, doing: _Doing) -> tuple[EnvironmentGate, ...]:
    workflow = at.workflow.name or at.workflow.workflow.name or ""
    return tuple(
        one
        for one in gates
        if _any(one.match.workflows, [workflow])
        and _kind_fits(one.match, at.step.kind, doing)
        and _fits(one.match, at.place, doing)
    )


def _kind_fits(match: Match, kind: str, doing: _Doing) -> bool:
    return kind in match.kinds if match.kinds else doing.ref is not None


def _fits(match: Match, place: str, doing: _Doing) -> bool:
    return (
        _any(match.steps, [place])
        and _any(match.refs, [doing.ref or ""])
        and _any(match.tools, doing.tools)
        and (not match.capabilities or bool(doing.capabilities & set(match.capabilities)))
    )


def _any(patterns: Sequence[str], names: Iterable[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
