"""Graphs of workflows: nodes and edges to draw.

The JSON form is the published one for the root workflow's own steps. A step inside a container has its id path
(``review/legal``) as id and the container as ``parent``; gates are listed by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kneo.spec.coverage.environment_gates import gates_around
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import EnvironmentGate
from kneo.spec.models.human import Condition
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import (
    ConcurrentWorkflow,
    ConditionStep,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    LeafStep,
    LoopStep,
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Step,
    StepsStep,
    Workflow,
)

NOTHING_ADDED: Mapping[int, Sequence[EnvironmentGate]] = {}


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A step; ``parent`` is its container, ``gates`` the positions of the gates around it."""

    id: str
    kind: str
    name: str
    step: Step
    parent: str | None = None
    gates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge from one step to another; ``priority`` is the order in which the edges of one step are tried."""

    source: str
    target: str
    label: str | None = None
    conditional: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class WorkflowGraph:
    """The nodes and edges of a workflow."""

    workflow_name: str
    workflow_kind: str
    start: str | None
    max_steps: int | None
    nodes: tuple[GraphNode, ...]
    edges: tuple[Arrow, ...]

    def as_json(self) -> dict[str, object]:
        """Return the published form, with ``parent``, ``ref`` and ``gates`` added."""
        return {
            "workflow_name": self.workflow_name,
            "workflow_kind": self.workflow_kind,
            "start": self.start,
            "max_steps": self.max_steps,
            "nodes": [_node_json(node) for node in self.nodes],
            "edges": [
                {
                    "source": edge.source,
                    "target": edge.target,
                    "label": edge.label,
                    "conditional": edge.conditional,
                    "priority": edge.priority,
                }
                for edge in self.edges
            ],
        }


def _node_json(node: GraphNode) -> dict[str, object]:
    step = node.step
    return {
        "id": node.id,
        "kind": node.kind,
        "name": node.name,
        "on_error": step.on_error,
        "fallback_node": step.fallback_ref,
        "max_retries": step.max_retries,
        "timeout_seconds": step.timeout_seconds,
        "ref": step.ref if isinstance(step, LeafStep) else None,
        "parent": node.parent,
        "gates": list(node.gates),
    }


def spec_graph(spec: Spec) -> WorkflowGraph:
    """Return the graph of the root workflow; a spec without one is its root agent alone."""
    workflow = spec.workflow
    if workflow is None:
        step = LeafStep(id=spec.agent.name, kind="agent", ref=spec.agent.name)
        workflow = SequentialWorkflow(type="sequential", name=spec.agent.name, steps=(step,))
    return workflow_graph(workflow, gates_around(SpecIndex.of(spec)))


def workflow_graph(
    workflow: Workflow, around: Mapping[int, Sequence[EnvironmentGate]] = NOTHING_ADDED
) -> WorkflowGraph:
    """Return the graph of a workflow, without disabled steps and their edges.

    Args:
        workflow: The workflow.
        around: The gates that an environment adds, by the identity of steps.
    """
    drawing = _Drawing(around)
    start = drawing.workflow(workflow)
    return WorkflowGraph(
        workflow_name=workflow.name or f"{workflow.type}-workflow",
        workflow_kind=workflow.type,
        start=start,
        max_steps=workflow.max_steps if isinstance(workflow, GraphWorkflow) else None,
        nodes=tuple(drawing.nodes),
        edges=tuple(drawing.edges),
    )


@dataclass(slots=True)
class _Drawing:
    around: Mapping[int, Sequence[EnvironmentGate]]
    nodes: list[GraphNode] = field(default_factory=list)
    edges: list[Arrow] = field(default_factory=list)

    def workflow(self, workflow: Workflow) -> str | None:
        match workflow:
            case SequentialWorkflow():
                return self._row(workflow.steps, None)
            case GraphWorkflow():
                return self._graph(workflow)
            case ConcurrentWorkflow():
                ids = [self._add(step, None) for step in _enabled(workflow.participants)]
                return ids[0] if ids else None
            case HandoffWorkflow():
                return self._handoff(workflow)
            case GroupChatWorkflow():
                ids = [self._add(step, None) for step in _enabled(workflow.participants)]
                self._chain(ids)
                if workflow.rounds > 1 and ids:
                    self.edges.append(Arrow(ids[-1], ids[0], f"{workflow.rounds} rounds", conditional=True, priority=0))
                return ids[0] if ids else None

    def _graph(self, workflow: GraphWorkflow) -> str | None:
        known = {key for key, node in workflow.nodes.items() if node.enabled}
        for key in workflow.nodes:
            if key in known:
                self._add(workflow.nodes[key], None, name=key)
        tried: dict[str, int] = {}
        for edge in workflow.edges:
            if edge.source in known and edge.target in known:
                order = tried.get(edge.source, 0)
                tried[edge.source] = order + 1
                label = edge.label or (spell_condition(edge.condition) if edge.condition else None)
                self.edges.append(Arrow(edge.source, edge.target, label, edge.condition is not None, order))
        return workflow.start

    def _handoff(self, workflow: HandoffWorkflow) -> str | None:
        ids = [self._add(step, None) for step in _enabled(workflow.participants)]
        order = [name for name in workflow.selector.sequence if name in ids] or ids
        self._chain(order)
        if workflow.selector.type == "round_robin" and order:
            self.edges.append(Arrow(order[-1], order[0], "next round", conditional=True))
        return order[0] if order else None

    def _row(self, steps: Sequence[Step], parent: str | None) -> str | None:
        ids = [self._add(step, parent) for step in _enabled(steps)]
        self._chain(ids)
        return ids[0] if ids else None

    def _chain(self, ids: Sequence[str]) -> None:
        self.edges += [Arrow(one, two) for one, two in pairwise(ids)]

    def _add(self, step: Step, parent: str | None, name: str | None = None) -> str:
        own = name or step.id
        path = f"{parent}/{own}" if parent else own
        gates = tuple(step.review.gates()) if step.review is not None else ()
        added = (f"{place}+{one.name}" for one in self.around.get(id(step), ()) for place in one.gates())
        self.nodes.append(GraphNode(path, step.kind, own, step, parent, (*gates, *added)))
        self._inside(step, path)
        return path

    def _inside(self, step: Step, path: str) -> None:
        match step:
            case StepsStep() | LoopStep():
                self._row(step.steps, path)
            case ParallelStep():
                for child in _enabled(step.steps):
                    self._add(child, path)
            case ConditionStep():
                when = spell_condition(step.when) if step.when else "approved"
                self._branch(step.steps, path, when, 0)
                self._branch(step.otherwise, path, "else", 1)
            case RouterStep():
                for order, (name, choice) in enumerate(step.choices.items()):
                    self._branch(choice.steps, path, name, order)
            case LeafStep():
                pass

    def _branch(self, steps: Sequence[Step], path: str, label: str, order: int) -> None:
        first = self._row(steps, path)
        if first is not None:
            self.edges.append(Arrow(path, first, label, conditional=True, priority=order))


def _enabled(steps: Sequence[Step]) -> Iterator[Step]:
    return (step for step in steps if step.enabled)


def spell_condition(condition: Condition) -> str:
    """Describe a condition in a few words."""
    kind = condition.type
    if kind in {"all_of", "any_of"}:
        joint = " and " if kind == "all_of" else " or "
        return joint.join(f"({spell_condition(part)})" for part in condition.conditions)
    if kind == "not":
        return f"not ({spell_condition(condition.condition)})" if condition.condition else "not"
    subject = kind.replace("_", " ") if condition.key is None else f"{kind.split('_', 1)[0]} {condition.key} equals"
    return subject if condition.value is None else f"{subject} {str(condition.value)[:40]!r}"


_SHAPES = {
    "human": ("{{", "}}"),
    "function": ("[", "]"),
    "workflow": ("[[", "]]"),
    "guardrail": ("[/", "/]"),
    "condition": ("{", "}"),
    "router": ("{", "}"),
}


def as_mermaid(graph: WorkflowGraph) -> str:
    """Format a graph as a Mermaid flowchart."""
    numbers = {node.id: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for node in graph.nodes:
        left, right = _SHAPES.get(node.kind, ("(", ")"))
        asks = f"<br/>asks {', '.join(node.gates)}" if node.gates else ""
        lines.append(f'    {numbers[node.id]}{left}"{_escape(node.id)}<br/>{node.kind}{asks}"{right}')
    reached = {edge.target for edge in graph.edges}
    lines += [
        f"    {numbers[node.parent]} -.-> {numbers[node.id]}"
        for node in graph.nodes
        if node.parent is not None and node.id not in reached
    ]
    for edge in graph.edges:
        label = f'|"{_escape(edge.label)}"|' if edge.label else ""
        arrow = "-.->" if edge.conditional else "-->"
        lines.append(f"    {numbers[edge.source]} {arrow}{label} {numbers[edge.target]}")
    return "\n".join(lines) + "\n"


def as_dot(graph: WorkflowGraph) -> str:
    """Format a graph in the language of Graphviz."""
    lines = ["digraph workflow {", "  node [shape=box, style=rounded];"]
    lines += [f"  {_dot(node.id)} [label={_dot(f'{node.id} ({node.kind})')}];" for node in graph.nodes]
    for edge in graph.edges:
        style = ", style=dashed" if edge.conditional else ""
        lines.append(f"  {_dot(edge.source)} -> {_dot(edge.target)} [label={_dot(edge.label or '')}{style}];")
    return "\n".join([*lines, "}", ""])


def _escape(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    )


def _dot(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
