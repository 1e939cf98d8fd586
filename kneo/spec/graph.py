"""Graphs of workflows: nodes and edges to draw; and summaries of a spec for the commands and the service.

The JSON form is the published one for the root workflow's own steps. A step inside a container has its id path
(``review/legal``) as id and the container as ``parent``; gates are listed by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from kneo.spec.coverage.environment_gates import gates_around
from kneo.spec.coverage.gates import condition_words
from kneo.spec.documents import Diagnostic, Path, Severity
from kneo.spec.index import SpecIndex, children
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
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Step,
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
            "edges": [asdict(edge) for edge in self.edges],
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
        if isinstance(workflow, GraphWorkflow):
            return self._graph(workflow)
        if isinstance(workflow, HandoffWorkflow):
            return self._handoff(workflow)
        chained = not isinstance(workflow, ConcurrentWorkflow)
        steps = workflow.steps if isinstance(workflow, SequentialWorkflow) else workflow.participants
        ids = self._block(steps, None, chained=chained)
        if isinstance(workflow, GroupChatWorkflow) and workflow.rounds > 1 and ids:
            self.edges.append(Arrow(ids[-1], ids[0], f"{workflow.rounds} rounds", conditional=True))
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
                label = edge.label or (_label(edge.condition) if edge.condition else None)
                self.edges.append(Arrow(edge.source, edge.target, label, edge.condition is not None, order))
        return workflow.start

    def _handoff(self, workflow: HandoffWorkflow) -> str | None:
        ids = self._block(workflow.participants, None, chained=False)
        order = [name for name in workflow.selector.sequence if name in ids] or ids
        self._chain(order)
        if workflow.selector.type == "round_robin" and order:
            self.edges.append(Arrow(order[-1], order[0], "next round", conditional=True))
        return order[0] if order else None

    def _block(self, steps: Sequence[Step], parent: str | None, *, chained: bool) -> list[str]:
        ids = [self._add(step, parent) for step in steps if step.enabled]
        if chained:
            self._chain(ids)
        return ids

    def _chain(self, ids: Sequence[str]) -> None:
        self.edges += [Arrow(one, two) for one, two in pairwise(ids)]

    def _add(self, step: Step, parent: str | None, name: str | None = None) -> str:
        own = name or step.id
        path = f"{parent}/{own}" if parent else own
        gates = tuple(step.review.gates()) if step.review is not None else ()
        added = (f"{place}+{one.name}" for one in self.around.get(id(step), ()) for place in one.gates())
        self.nodes.append(GraphNode(path, step.kind, own, step, parent, (*gates, *added)))
        for order, (below, steps) in enumerate(children(step)):
            ids = self._block(steps, path, chained=not isinstance(step, ParallelStep))
            label = _branch_label(step, below)
            if label is not None and ids:
                self.edges.append(Arrow(path, ids[0], label, conditional=True, priority=order))
        return path


def _branch_label(step: Step, below: Path) -> str | None:
    """Return the label of the edge to a block of a condition or a router; other containers have no such edge."""
    if isinstance(step, RouterStep):
        return str(below[1])
    if not isinstance(step, ConditionStep):
        return None
    if below == ("else",):
        return "else"
    return _label(step.when) if step.when else "approved"


LABEL_CHARS = 120


def _label(condition: Condition) -> str:
    """Return a condition in words, which end where a label of an edge does."""
    words = condition_words(condition)
    return words if len(words) <= LABEL_CHARS else f"{words[: LABEL_CHARS - 1]}…"


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


Map = dict[str, object]

REFUSED_HERE = frozenset(
    {
        "W_MODEL_PROVIDER",
        "W_MODEL_NOT_ALLOWED",
        "W_MODEL_HOST",
        "I_MODEL_EXTRA",
        "I_MODEL_KEY",
        "I_MODEL_ADDRESS",
        "I_MCP_EXTRA",
    }
)
"""The codes of findings for which the start of a run on this machine is refused."""


def names_of(spec: Spec | None) -> Map:
    """Return the names of the root agent and workflow; both None where the spec does not match the schema."""
    if spec is None:
        return {"agent_name": None, "workflow_name": None}
    workflow = spec.workflow
    return {
        "agent_name": spec.agent.name,
        "workflow_name": (workflow.name or f"{workflow.type}-workflow") if workflow is not None else None,
    }


def compiled(spec: Spec) -> Map:
    """Return the roots and agents of a spec."""
    return {
        "has_root_agent": True,
        "has_root_workflow": spec.workflow is not None,
        "component_agents": list(spec.components.agents),
    }


def explained(spec: Spec) -> Map:
    """Return the steps of a spec with their gates."""
    names = names_of(spec)
    return {
        "summary": {
            "root_agent": names["agent_name"],
            "root_workflow": names["workflow_name"],
            "component_agents": list(spec.components.agents),
        },
        "steps": [_step(node) for node in spec_graph(spec).nodes],
    }


def linted(findings: Sequence[Diagnostic]) -> Map:
    """Return the errors and warnings among findings, and their numbers."""
    listed = worth_a_look(findings)
    errors = sum(found.is_error for found in listed)
    return {
        "clean": not listed,
        "warning_count": len(listed) - errors,
        "error_count": errors,
        "diagnostics": [found.as_json() for found in listed],
    }


def worth_a_look(findings: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return errors and warnings, without remarks."""
    return [found for found in findings if found.severity is not Severity.INFO]


def missing_here(findings: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return the findings about models and libraries that a run here would be refused for."""
    return [found for found in findings if found.code in REFUSED_HERE]


def _step(node: GraphNode) -> Map:
    step = node.step
    review = step.review
    return {
        "id": node.id,
        "kind": node.kind,
        "ref": step.ref if isinstance(step, LeafStep) else None,
        "gates": {place: gate.human if isinstance(gate.human, str) else None for place, gate in review.gates().items()}
        if review is not None
        else {},
    }
