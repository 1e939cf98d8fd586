"""Families of workflows: graphs, handoffs, group chats."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.index import LocatedWorkflow, SpecIndex, reached_nodes
from kneo.spec.models import GraphWorkflow, GroupChatWorkflow, HandoffWorkflow


def families(view: SpecIndex) -> Iterator[Diagnostic]:
    """Each family of workflow has what it needs to run."""
    for at in view.workflows:
        match at.workflow:
            case GraphWorkflow():
                yield from _graph(view, at, at.workflow)
            case HandoffWorkflow():
                yield from _handoff(view, at, at.workflow)
            case GroupChatWorkflow() if at.workflow.rounds < 1:
                message = f"rounds is {at.workflow.rounds}; a chat has at least one."
                yield error("E_GROUP_CHAT_ROUNDS", message, (*at.path, "rounds"))
            case _:
                pass


def _graph(view: SpecIndex, at: LocatedWorkflow, graph: GraphWorkflow) -> Iterator[Diagnostic]:
    if graph.max_steps < 1:
        message = f"max_steps is {graph.max_steps}; it must be at least 1."
        yield error("E_GRAPH_MAX_STEPS", message, (*at.path, "max_steps"))
    start = graph.nodes.get(graph.start)
    if start is None:
        hint = view.hints.near(graph.start, graph.nodes)
        message = f"The graph starts at {graph.start}, which is no node of it."
        yield error("E_GRAPH_START", message, (*at.path, "start"), suggestion=hint)
    elif not start.enabled:
        message = f"The graph starts at {graph.start}, which is disabled."
        yield error("E_GRAPH_START_DISABLED", message, (*at.path, "start"))
    for index, edge in enumerate(graph.edges):
        path = (*at.path, "edges", index)
        for code, name, word in (("E_GRAPH_EDGE_FROM", edge.source, "from"), ("E_GRAPH_EDGE_TO", edge.target, "to")):
            if name not in graph.nodes:
                hint = view.hints.near(name, graph.nodes)
                yield error(code, f"The edge goes {word} {name}, which is no node of the graph.", path, suggestion=hint)
    if start is not None and start.enabled:
        yield from _unreachable(at, graph)


def _unreachable(at: LocatedWorkflow, graph: GraphWorkflow) -> Iterator[Diagnostic]:
    reached = reached_nodes(graph)
    for name, node in graph.nodes.items():
        if node.enabled and name not in reached:
            message = f"No way leads from {graph.start} to {name}; it never runs."
            yield warning("W_GRAPH_NODE_UNREACHABLE", message, (*at.path, "nodes", name))


def _handoff(view: SpecIndex, at: LocatedWorkflow, handoff: HandoffWorkflow) -> Iterator[Diagnostic]:
    known = {participant.id for participant in handoff.participants}
    for index, name in enumerate(handoff.selector.sequence):
        if name not in known:
            path = (*at.path, "selector", "sequence", index)
            hint = view.hints.near(name, known)
            yield error("E_HANDOFF_SELECTOR_REF", f"{name} is no participant of the handoff.", path, suggestion=hint)
