"""Questions of a run: whether it can reach a step or gate that asks a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kneo.spec.coverage.dependencies import agent_needs, step_needs
from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent, gates_at_call
from kneo.spec.coverage.exposure import callable_tools, declared_tools
from kneo.spec.coverage.gates import step_gates
from kneo.spec.documents import Path
from kneo.spec.index import ROOT, ROOT_WORKFLOW, LocatedStep, Part, SpecIndex, reachable, reached_nodes
from kneo.spec.models.spec import Tool
from kneo.spec.models.workflow import GraphWorkflow, Step


def asks_person(index: SpecIndex) -> bool:
    """Tell whether a run of the spec's workflow, or of its agent where it has no workflow, can ask a person."""
    return _asks(index, ROOT_WORKFLOW) if index.spec.workflow is not None else agent_asks_person(index)


def agent_asks_person(index: SpecIndex) -> bool:
    """Tell whether a run of the root agent alone can ask a person: around it, at its tools, in its workflow."""
    return bool(gates_around_agent(index)) or _asks(index, ROOT)


def _asks(index: SpecIndex, root: Part) -> bool:
    around, steps = gates_around(index), reached_steps(index)

    def asks(part: Part) -> bool:
        if part[0] == "workflow":
            return any(
                at.step.kind == "human" or id(at.step) in around or _ask(at.step) for at in steps.get(part[1], ())
            )
        agent = index.agent_of(part)
        if agent is None:
            return False
        name = part[1] or index.spec.agent.name
        return any(_ask(tool) for _, tool in declared_tools(index, agent)) or any(
            gates_at_call(index, name, tool) for tool in callable_tools(agent)
        )

    return any(map(asks, reached_parts(index, root)))


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


def _ask(part: Step | Tool) -> bool:
    """Tell whether any gate of a step or tool ever asks: not where its condition never holds and its share is zero."""
    return any(
        (gate.when is None and gate.sample is None) or (gate.when and gate.when.type != "never") or gate.sample
        for gate in step_gates(part).values()
    )
