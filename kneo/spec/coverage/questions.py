"""Whether a run asks a person: a question counts only where a run can come to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kneo.spec.coverage.dependencies import ROOT, Part, agent_part
from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent
from kneo.spec.coverage.exposure import helpers
from kneo.spec.coverage.gates import tool_gates
from kneo.spec.coverage.permissions import callable_tools
from kneo.spec.documents import Path
from kneo.spec.index import LocatedStep, SpecIndex, reached_nodes
from kneo.spec.models import Agent, Gate, GraphWorkflow


def asks_somebody(view: SpecIndex) -> bool:
    """Tell whether a run of the spec, which is one of its workflow where it has one, can ask a person."""
    return _asks(view, ("workflow", "")) if view.spec.workflow is not None else agent_asks_somebody(view)


def agent_asks_somebody(view: SpecIndex) -> bool:
    """Tell whether a run of the root agent alone can ask: around it, at its tools, in the workflow that it is."""
    return bool(gates_around_agent(view)) or _asks(view, ROOT)


def _asks(view: SpecIndex, root: Part) -> bool:
    """Follow what a run executes, from its workflow or agent on."""
    around = gates_around(view)
    steps = _steps_that_run(view)
    seen, ahead = {root}, [root]
    while ahead:
        kind, name = ahead.pop()
        if kind == "workflow":
            own = steps.get(name, ())
            if any(_step_asks(at) or id(at.step) in around for at in own):
                return True
            needs = [part for at in own for part in _run_by_step(view, at)]
        else:
            if any(_can_ask(gate) for gate in _gates_at_tools(view, name)):
                return True
            needs = list(_run_by_agent(view, name))
        for part in needs:
            if part not in seen:
                seen.add(part)
                ahead.append(part)
    return False


def _steps_that_run(view: SpecIndex) -> Mapping[str, Sequence[LocatedStep]]:
    """Return the steps of each workflow, without those that are disabled or never reached and all that they hold."""
    reached = {at.path: reached_nodes(at.workflow) for at in view.workflows if isinstance(at.workflow, GraphWorkflow)}
    found: dict[str, list[LocatedStep]] = {}
    left_out: set[Path] = set()
    for at in view.steps:
        never = at.role == "node" and at.key is not None and at.key not in reached[at.workflow.path]
        inside = any(at.path[:length] in left_out for length in range(len(at.path)))
        if never or inside or not at.step.enabled:
            left_out.add(at.path)
        else:
            found.setdefault(at.workflow.name or "", []).append(at)
    return found


def _step_asks(at: LocatedStep) -> bool:
    review = at.step.review
    return at.step.kind == "human" or (review is not None and any(map(_can_ask, review.gates().values())))


def _can_ask(gate: Gate) -> bool:
    """Tell whether a gate ever asks: not where its condition never holds and its chance is nothing."""
    if gate.when is None and gate.sample is None:
        return True
    return (gate.when is not None and gate.when.type != "never") or bool(gate.sample)


def _run_by_step(view: SpecIndex, at: LocatedStep) -> Iterator[Part]:
    match at.step.kind:
        case "workflow":
            yield "workflow", at.step.ref
        case "agent" | "guardrail":
            yield agent_part(view, at.step.ref)
        case _:
            pass


def _gates_at_tools(view: SpecIndex, name: str) -> Iterator[Gate]:
    agent = _agent(view, name)
    for tool_name in callable_tools(agent) if agent is not None else ():
        tool = view.spec.tools.get(tool_name)
        if tool is not None:
            yield from tool_gates(tool).values()


def _run_by_agent(view: SpecIndex, name: str) -> Iterator[Part]:
    agent = _agent(view, name)
    if agent is None:
        return
    if agent.as_agent:
        yield "workflow", agent.as_agent
    for tool_name in callable_tools(agent):
        tool = view.spec.tools.get(tool_name)
        if tool is not None and tool.agent:
            yield agent_part(view, tool.agent)
    for _, helper in helpers(agent):
        yield agent_part(view, helper)


def _agent(view: SpecIndex, name: str) -> Agent | None:
    return view.spec.agent if not name else view.spec.components.agents.get(name)
