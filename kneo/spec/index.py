"""Index of a spec: every agent, workflow, block of steps and step with its path, built in one visit per step.

Rules iterate over the index instead of the tree, which keeps a whole check linear in the size of the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

from kneo.spec.base import suggest
from kneo.spec.documents import Diagnostic, Path, error
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import (
    ConditionStep,
    GraphWorkflow,
    LeafStep,
    RouterStep,
    SequentialWorkflow,
    Step,
    Workflow,
)
from kneo.spec.modules import NOTHING_KNOWN, RuleContext
from kneo.spec.tool_kinds import ASK_QUESTION, Capability

Role: TypeAlias = Literal["step", "node", "participant"]

Part: TypeAlias = tuple[str, str]
"""An agent, workflow or function by its kind and name."""

ROOT: Part = ("agent", "")
"""The root agent, which is not a component and can still be run by its name."""

ROOT_WORKFLOW: Part = ("workflow", "")

MAX_HINTS = 50  # findings of one check that get a suggestion by likeness
MAX_HINT_NAMES = 500  # names that one such search compares with

Node = TypeVar("Node")


@dataclass(frozen=True, slots=True)
class LocatedAgent:
    """An agent and its path; ``name`` is None for the root agent."""

    agent: Agent
    path: Path
    name: str | None = None

    @property
    def part(self) -> Part:
        return "agent", self.name or ""


@dataclass(frozen=True, slots=True)
class LocatedWorkflow:
    """A workflow and its path; ``name`` is None for the root workflow."""

    workflow: Workflow
    path: Path
    name: str | None = None

    @property
    def part(self) -> Part:
        return "workflow", self.name or ""


@dataclass(frozen=True, slots=True)
class LocatedStep:
    """A step, its path, and its key where the steps are a map; ``parent`` is the id path of its container."""

    step: Step
    path: Path
    workflow: LocatedWorkflow
    role: Role
    key: str | None = None
    parent: str = ""

    @property
    def name(self) -> str:
        """The key or the id of the step."""
        return self.key or self.step.id

    @property
    def id_path(self) -> str:
        """The ids from the outside in: ``review/legal``."""
        return f"{self.parent}/{self.name}" if self.parent else self.name


@dataclass(frozen=True)
class Block:
    """A list or map of steps: the scope of ids and fallbacks."""

    members: tuple[LocatedStep, ...]
    path: Path
    workflow: LocatedWorkflow
    role: Role

    @cached_property
    def by_name(self) -> Mapping[str, LocatedStep]:
        """The members by id, nodes by key; of two with one id the first."""
        return {at.name: at for at in reversed(self.members)}


class Hints:
    """Suggestions of names, for the first findings of a check only.

    Likeness is slow to measure: a spec with thousands of wrong names must not cost thousands of searches through
    thousands of names. A check after the first fifty are corrected suggests names for the next.
    """

    def __init__(self) -> None:
        self._left = MAX_HINTS

    def near(self, word: str, known: Collection[str]) -> str | None:
        """Suggest the known name nearest to a word, or list the known names."""
        if self._left <= 0 or len(known) > MAX_HINT_NAMES:
            return None
        self._left -= 1
        return suggest(word, tuple(known))


@dataclass(frozen=True)
class SpecIndex:
    """A spec with an index of its parts.

    Attributes:
        agents: The root agent and then the components, in the order of the file.
        workflows: The root workflow, where there is one, and then the components, in the order of the file.
        blocks: Every block of steps of every workflow by its path, outer before inner.
        steps: Every step of every workflow at any depth, in reading order.
    """

    spec: Spec
    context: RuleContext
    agents: tuple[LocatedAgent, ...]
    workflows: tuple[LocatedWorkflow, ...]
    blocks: Mapping[Path, Block]
    steps: tuple[LocatedStep, ...]
    hints: Hints = field(default_factory=Hints, compare=False)

    @classmethod
    def of(cls, spec: Spec, context: RuleContext = NOTHING_KNOWN) -> SpecIndex:
        """Index a spec."""
        components = spec.components
        agents = [LocatedAgent(spec.agent, ("agent",))]
        agents += [LocatedAgent(each, ("components", "agents", name), name) for name, each in components.agents.items()]
        workflows = [] if spec.workflow is None else [LocatedWorkflow(spec.workflow, ("workflow",))]
        workflows += [
            LocatedWorkflow(each, ("components", "workflows", name), name)
            for name, each in components.workflows.items()
        ]
        blocks: dict[Path, Block] = {}
        steps: list[LocatedStep] = []
        for workflow in workflows:
            _collect(_root_block(workflow), blocks, steps)
        return cls(spec, context, tuple(agents), tuple(workflows), blocks, tuple(steps))

    def undeclared(
        self, code: str, message: str, path: Path, name: str, known: Collection[str], place: str | None = None
    ) -> Diagnostic:
        """Report a name that is not among the known ones; the place is where the spec can declare it."""
        hint = self.hints.near(name, known) or (f"Declare it in {place}." if place else None)
        return error(code, message, path, suggestion=hint)

    def agent_named(self, name: str) -> Agent | None:
        """Return the agent that a step calls by this name: a component, or the root agent by its own name."""
        found = self.spec.components.agents.get(name)
        return self.spec.agent if found is None and name == self.spec.agent.name else found

    def agent_part(self, name: str) -> Part:
        """Return the part of an agent that a step calls by this name."""
        return ROOT if name == self.spec.agent.name and name not in self.spec.components.agents else ("agent", name)

    def agent_of(self, part: Part) -> Agent | None:
        """Return the agent that is a part; None where it does not exist."""
        return self.spec.agent if part == ROOT else self.spec.components.agents.get(part[1])

    def capabilities(self, function: str) -> tuple[Capability, ...]:
        """Return the capabilities of a function; none where the spec does not declare it."""
        known = self.spec.components.functions.get(function)
        return known.all_capabilities if known is not None else ()

    @cached_property
    def agent_names(self) -> frozenset[str]:
        """Names that :meth:`agent_named` knows."""
        return frozenset((*self.spec.components.agents, self.spec.agent.name))

    @cached_property
    def function_names(self) -> frozenset[str]:
        """Functions of the spec and of the embedding program."""
        return self.context.functions | frozenset(self.spec.components.functions)

    @cached_property
    def tool_names(self) -> frozenset[str]:
        """Tools of the spec and, where it is known, of the embedding program, and the built-in one to ask people."""
        return frozenset((*(self.context.tools or ()), *self.spec.tools, ASK_QUESTION))

    def is_missing_tool(self, name: str) -> bool:
        """Tell whether a tool is neither in the spec nor registered, as far as this process knows."""
        return self.context.tools is not None and name not in self.tool_names


def children(step: Step) -> tuple[tuple[Path, Sequence[Step]], ...]:
    """Return the blocks of steps that a step contains, with their paths below it."""
    if isinstance(step, LeafStep):
        return ()
    if isinstance(step, RouterStep):
        return tuple((("choices", name, "steps"), choice.steps) for name, choice in step.choices.items())
    if isinstance(step, ConditionStep):
        return ((("steps",), step.steps), (("else",), step.otherwise))
    return ((("steps",), step.steps),)


def _root_block(at: LocatedWorkflow) -> Block:
    workflow = at.workflow
    if isinstance(workflow, GraphWorkflow):
        path = (*at.path, "nodes")
        nodes = (LocatedStep(node, (*path, key), at, "node", key) for key, node in workflow.nodes.items())
        return Block(tuple(nodes), path, at, "node")
    if isinstance(workflow, SequentialWorkflow):
        return _block(workflow.steps, (*at.path, "steps"), at, "step")
    return _block(workflow.participants, (*at.path, "participants"), at, "participant")


def _block(steps: Iterable[Step], path: Path, at: LocatedWorkflow, role: Role, parent: str = "") -> Block:
    members = (LocatedStep(step, (*path, index), at, role, None, parent) for index, step in enumerate(steps))
    return Block(tuple(members), path, at, role)


def _collect(block: Block, blocks: dict[Path, Block], steps: list[LocatedStep]) -> None:
    """Add a block and everything inside it; the reader bounds the depth."""
    blocks[block.path] = block
    for member in block.members:
        steps.append(member)
        for below, inner in children(member.step):
            _collect(_block(inner, (*member.path, *below), block.workflow, "step", member.id_path), blocks, steps)


def reachable(start: Node, following: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    """Yield a node of a graph and every node that can be reached from it, each once."""
    seen, pending = {start}, [start]
    while pending:
        node = pending.pop()
        yield node
        for other in following(node):
            if other not in seen:
                seen.add(other)
                pending.append(other)


def reached_nodes(graph: GraphWorkflow) -> frozenset[str]:
    """Return the enabled nodes to which edges and fallbacks lead from the start."""
    targets: dict[str, list[str]] = {name: [] for name, node in graph.nodes.items() if node.enabled}
    for edge in graph.edges:
        if edge.source in targets and edge.target in targets:
            targets[edge.source].append(edge.target)
    for name, following in targets.items():
        fallback = graph.nodes[name].fallback_ref
        if fallback in targets:
            following.append(fallback)
    return frozenset(reachable(graph.start, targets.__getitem__) if graph.start in targets else ())
