"""Rules for workflows: references of steps, conditions, routers, graphs, handoffs and cycles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from kneo.spec.coverage.exposure import components, dependencies
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.index import Block, LocatedStep, LocatedWorkflow, Part, SpecIndex, reached_nodes
from kneo.spec.models.workflow import (
    ConcurrentWorkflow,
    ConditionStep,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    LeafStep,
    RouterSelector,
    RouterStep,
)

MAX_NAMED = 12  # parts of a cycle that a message names

_REFERENCES = {
    "agent": ("E_STEP_AGENT_REF", "components.agents"),
    "function": ("E_STEP_FUNCTION_REF", "components.functions"),
    "human": ("E_STEP_HUMAN_REF", "components.humans"),
    "workflow": ("E_STEP_WORKFLOW_REF", "components.workflows"),
    "guardrail": ("E_STEP_GUARDRAIL_REF", "components.agents"),
}

_STEP_FALLBACK = {
    "missing": "E_STEP_FALLBACK_REF",
    "unknown": "E_STEP_FALLBACK_UNKNOWN",
    "human": "E_STEP_FALLBACK_HUMAN",
    "disabled": "W_STEP_FALLBACK_DISABLED",
}
_NODE_FALLBACK = {
    "missing": "E_GRAPH_NODE_FALLBACK_REF",
    "unknown": "E_GRAPH_NODE_FALLBACK_UNKNOWN",
    "human": "E_GRAPH_FALLBACK_HUMAN",
    "disabled": "E_GRAPH_NODE_FALLBACK_DISABLED",
}


def step_references(index: SpecIndex) -> Iterator[Diagnostic]:
    """Steps refer to declared components, and their ids are unique in their block."""
    known: dict[str, Collection[str]] = {
        "agent": index.agent_names,
        "function": index.function_names,
        "human": frozenset(index.spec.components.humans),
        "workflow": frozenset(index.spec.components.workflows),
        "guardrail": index.agent_names,
    }
    for block in index.blocks.values():
        by_id = {member.step.id: member for member in reversed(block.members)}
        for member in block.members:
            yield from _reference(index, member, known)
            yield from _own_id(member, by_id)
            yield from _fallback(index, member, block.by_name if member.role == "node" else by_id)
        yield from _fallback_cycles(block)


def _selecting_agent(index: SpecIndex, router: str, name: str, path: Path) -> Iterator[Diagnostic]:
    agent = index.agent_named(name)
    if agent is None:
        message = f"The router {router} chooses by the agent {name}, which is not in components.agents."
        yield index.undeclared("E_STEP_AGENT_REF", message, path, name, index.agent_names, "components.agents")
    elif agent.as_agent is not None:
        message = f"The router {router} chooses by the agent {name}, which is a workflow (as_agent)."
        yield error("E_ROUTER_SELECTOR", message, path, suggestion="Name an agent that has a model.")


def _reference(index: SpecIndex, at: LocatedStep, known: Mapping[str, Collection[str]]) -> Iterator[Diagnostic]:
    step = at.step
    if isinstance(step, RouterStep) and step.selector and step.selector.function is not None:
        name = step.selector.function
        if name not in index.function_names:
            message = f"The router {step.id} chooses by {name}, which is not in components.functions."
            path = (*at.path, "selector", "function")
            yield index.undeclared(
                "E_STEP_FUNCTION_REF", message, path, name, index.function_names, "components.functions"
            )
    if isinstance(step, RouterStep) and step.selector and step.selector.agent is not None:
        yield from _selecting_agent(index, step.id, step.selector.agent, (*at.path, "selector", "agent"))
    if not isinstance(step, LeafStep):
        return
    path = (*at.path, "ref")
    if step.kind == "workflow" and step.ref == at.workflow.name:
        yield error("E_STEP_WORKFLOW_SELF_REF", f"The workflow {step.ref} runs itself in step {step.id}.", path)
    elif step.ref not in known[step.kind]:
        code, place = _REFERENCES[step.kind]
        message = f"The step {step.id} runs {step.ref}, which is not in {place}."
        yield index.undeclared(code, message, path, step.ref, known[step.kind], place)


def _own_id(at: LocatedStep, by_id: Mapping[str, LocatedStep]) -> Iterator[Diagnostic]:
    if at.role == "node":
        if at.key != at.step.id:
            message = f"The node {at.key} has the id {at.step.id}; edges refer to a node by its key."
            yield warning("W_GRAPH_NODE_ID_MISMATCH", message, (*at.path, "id"), suggestion=f"Write id: {at.key}.")
    elif by_id[at.step.id] is not at:
        code = "E_PARTICIPANT_DUPLICATE_ID" if at.role == "participant" else "E_STEP_DUPLICATE_ID"
        yield error(code, f"Another {at.role} of this block has the id {at.step.id} too.", (*at.path, "id"))


def _fallback(index: SpecIndex, at: LocatedStep, targets: Mapping[str, LocatedStep]) -> Iterator[Diagnostic]:
    step, path = at.step, (*at.path, "fallback_ref")
    codes = _NODE_FALLBACK if at.role == "node" else _STEP_FALLBACK
    target = targets.get(step.fallback_ref) if step.fallback_ref is not None else None
    if step.on_error != "fallback" and step.fallback_ref is None:
        return
    if at.role == "participant":
        message = f"The participant {step.id} names a fallback; a participant cannot be the fallback of another."
        hint = "Wrap the two in a workflow and let the participant run that."
        yield error("E_PARTICIPANT_FALLBACK_UNSUPPORTED", message, path, suggestion=hint)
    elif step.fallback_ref is None or (step.on_error == "fallback" and not step.fallback_ref):
        message = f"{step.id} has on_error: fallback and no fallback_ref."
        yield error(codes["missing"], message, path, suggestion="Name the step that runs in its place.")
    elif target is None or target is at:
        what = "itself" if target is at else f"{step.fallback_ref}, which is no {at.role} of this block"
        yield index.undeclared(
            codes["unknown"], f"The fallback of {step.id} is {what}.", path, step.fallback_ref, targets
        )
    elif isinstance(target.step, LeafStep) and target.step.kind == "human":
        message = f"The fallback of {step.id} is a question to a person, {step.fallback_ref}."
        hint = "Ask with review.error at the step that fails."
        yield error(codes["human"], message, path, suggestion=hint)
    elif not target.step.enabled:
        message = f"The fallback of {step.id} is {step.fallback_ref}, which is disabled."
        yield (error if at.role == "node" else warning)(codes["disabled"], message, path)


def _fallback_cycles(block: Block) -> Iterator[Diagnostic]:
    """Fallbacks do not lead back to themselves: where all of them fail, no step is left to run."""
    fallbacks = {at.name: at.step.fallback_ref for at in block.members if at.step.on_error == "fallback"}
    for members in components(fallbacks, lambda name: [ref for ref in (fallbacks[name],) if ref in fallbacks]):
        if len(members) > 1:
            first = next(name for name in fallbacks if name in frozenset(members))
            message = f"{len(members)} {block.role}s are fallbacks of each other in a cycle, {first} among them."
            hint = "Let one of them fail, continue, or ask with review.error."
            path = (*block.by_name[first].path, "fallback_ref")
            yield error("E_STEP_FALLBACK_CYCLE", message, path, suggestion=hint)


def containers(index: SpecIndex) -> Iterator[Diagnostic]:
    """Conditions and routers have a way to decide, and every decision leads to a choice."""
    for at in index.steps:
        step = at.step
        if isinstance(step, RouterStep):
            yield from _router(index, at.path, step)
        elif (
            isinstance(step, ConditionStep)
            and step.when is None
            and (step.review is None or step.review.before is None)
        ):
            message = f"The condition {step.id} has no way to decide."
            hint = "Write when, or review.before to let a person decide."
            yield error("E_CONDITION_WHEN", message, (*at.path, "when"), suggestion=hint)


def _router(index: SpecIndex, path: Path, step: RouterStep) -> Iterator[Diagnostic]:
    if not step.choices:
        yield error("E_ROUTER_CHOICES", f"The router {step.id} has no choices.", (*path, "choices"))
    named: list[tuple[Path, str]] = [(("order", at), name) for at, name in enumerate(step.order)]
    selector = step.selector
    if selector is not None and selector.function is not None and selector.agent is not None:
        message = f"The router {step.id} has a function and an agent that choose; one of them can."
        yield error("E_ROUTER_SELECTOR", message, (*path, "selector"), suggestion="Keep function or agent.")
    if selector is None or selector == RouterSelector():
        if step.review is None or step.review.route is None:
            message = f"The router {step.id} has no way to choose."
            hint = "Write selector, or review.route to let a person choose."
            yield error("E_ROUTER_SELECTOR", message, (*path, "selector"), suggestion=hint)
    else:
        named += [
            (("selector", "conditions", at, "choice"), each.choice) for at, each in enumerate(selector.conditions)
        ]
        named += [(("selector", "default"), selector.default)] if selector.default is not None else []
    for below, name in named:
        if name not in step.choices:
            message = f"{name} is no choice of the router {step.id}."
            yield index.undeclared("E_ROUTER_CHOICE", message, (*path, *below), name, step.choices)


def timeouts(index: SpecIndex) -> Iterator[Diagnostic]:
    """A step with a time limit can be stopped: it calls a function, an agent or a person."""
    for at in index.steps:
        if at.step.timeout_seconds is None or not at.step.enabled:
            continue
        kind: str | None = at.step.kind
        if isinstance(at.step, LeafStep) and kind != "workflow":
            agent = index.agent_named(at.step.ref) if kind in {"agent", "guardrail"} else None
            if agent is None or agent.as_agent is None:
                continue
            kind = f"{kind}, whose agent is the workflow {agent.as_agent}"
        message = f"The step {at.step.id} is of kind {kind}: a run does not limit its time, and is refused."
        hint = "Set a timeout for the steps in it, or for the whole run."
        yield error("E_STEP_TIMEOUT", message, (*at.path, "timeout_seconds"), suggestion=hint)


def families(index: SpecIndex) -> Iterator[Diagnostic]:
    """Workflows of every family are complete."""
    for at in index.workflows:
        workflow = at.workflow
        if isinstance(workflow, GraphWorkflow):
            yield from _graph(index, at, workflow)
        elif isinstance(workflow, HandoffWorkflow):
            known = {participant.id for participant in workflow.participants}
            for number, name in enumerate(workflow.selector.sequence):
                if name not in known:
                    path = (*at.path, "selector", "sequence", number)
                    message = f"{name} is no participant of the handoff."
                    yield index.undeclared("E_HANDOFF_SELECTOR_REF", message, path, name, known)
        elif isinstance(workflow, ConcurrentWorkflow) and workflow.lacks_turns():
            message = f"max_iterations is {workflow.max_iterations}, and each participant takes one turn."
            hint = "Leave it out. rounds of a group-chat repeats turns; strategy.max_iterations limits an agent."
            yield error("E_CONCURRENT_TURNS", message, (*at.path, "max_iterations"), suggestion=hint)
        elif isinstance(workflow, GroupChatWorkflow) and workflow.rounds < 1:
            message = f"rounds is {workflow.rounds}; it must be at least 1."
            yield error("E_GROUP_CHAT_ROUNDS", message, (*at.path, "rounds"))


def _graph(index: SpecIndex, at: LocatedWorkflow, graph: GraphWorkflow) -> Iterator[Diagnostic]:
    if graph.max_steps < 1:
        message = f"max_steps is {graph.max_steps}; it must be at least 1."
        yield error("E_GRAPH_MAX_STEPS", message, (*at.path, "max_steps"))
    start = graph.nodes.get(graph.start)
    if start is None:
        message = f"The graph starts at {graph.start}, which is no node of it."
        yield index.undeclared("E_GRAPH_START", message, (*at.path, "start"), graph.start, graph.nodes)
    elif not start.enabled:
        message = f"The graph starts at {graph.start}, which is disabled."
        yield error("E_GRAPH_START_DISABLED", message, (*at.path, "start"))
    for number, edge in enumerate(graph.edges):
        path = (*at.path, "edges", number)
        for code, end, name in (("E_GRAPH_EDGE_FROM", "from", edge.source), ("E_GRAPH_EDGE_TO", "to", edge.target)):
            if name not in graph.nodes:
                message = f"The edge goes {end} {name}, which is no node of the graph."
                yield index.undeclared(code, message, path, name, graph.nodes)
    if start is not None and start.enabled:
        reached = reached_nodes(graph)
        for name, node in graph.nodes.items():
            if node.enabled and name not in reached:
                message = f"No edge leads from {graph.start} to {name}; it never runs."
                yield warning("W_GRAPH_NODE_UNREACHABLE", message, (*at.path, "nodes", name))


def build_cycles(index: SpecIndex) -> Iterator[Diagnostic]:
    """No component needs itself to be built."""
    needs = dependencies(index)
    for members in components(needs, needs.__getitem__):
        part = members[0]
        if len(members) > 1:
            message = f"These components need each other in a cycle: {_cycle(members, needs.__getitem__)}."
        elif part in needs[part]:
            message = f"The {part[0]} {part[1] or index.spec.agent.name} needs itself."
        else:
            continue
        yield error("E_BUILD_CYCLE", message, ("components",), suggestion="Take one of them out of the cycle.")


def _cycle(members: list[Part], needs: Callable[[Part], tuple[Part, ...]]) -> str:
    """Name one cycle through the members, from the first that was met; long ones are shortened."""
    inside = set(members)
    order: dict[Part, int] = {}
    part = members[-1]
    while part not in order:
        order[part] = len(order)
        part = next(other for other in needs(part) if other in inside)
    names = [f"{kind} {name}" if name else "the root agent" for kind, name in list(order)[order[part] :]]
    if len(names) > MAX_NAMED:
        names[MAX_NAMED - 1 :] = [f"… {len(names) - MAX_NAMED + 1} more …"]
    return " → ".join((*names, names[0]))
