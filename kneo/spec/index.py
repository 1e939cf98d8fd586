"""An index over a spec, built once, so that every rule walks lists instead of the tree.

Every agent, workflow, block of steps and step stands here with its path, at any depth. Building it costs one visit
per step; rules that only iterate over it keep the whole check linear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from kneo.spec.context import RuleContext
from kneo.spec.documents import Path
from kneo.spec.messages import suggest
from kneo.spec.models import (
    Agent,
    ConditionStep,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    LeafStep,
    LoopStep,
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Spec,
    Step,
    StepsStep,
    Workflow,
)
from kneo.spec.models import ConcurrentWorkflow as Concurrent

Role: TypeAlias = Literal["step", "node", "participant"]

MAX_HINTS = 50  # findings of one check that get a suggestion by likeness
MAX_HINT_NAMES = 500  # names that one such search compares with


@dataclass(frozen=True, slots=True)
class LocatedAgent:
    """An agent and where it is; ``name`` is None for the root agent."""

    agent: Agent
    path: Path
    name: str | None = None


@dataclass(frozen=True, slots=True)
class LocatedWorkflow:
    """A workflow and where it is; ``name`` is None for the root workflow."""

    workflow: Workflow
    path: Path
    name: str | None = None


@dataclass(frozen=True, slots=True)
class LocatedStep:
    """A step, where it is, and the key it is kept under where that is a map.

    ``parent`` is the path of ids of what it stands in, within its workflow.
    """

    step: Step
    path: Path
    workflow: LocatedWorkflow
    role: Role
    key: str | None = None
    parent: str = ""

    @property
    def place(self) -> str:
        """The ids from the outside in: ``review/legal``."""
        own = self.key or self.step.id
        return f"{self.parent}/{own}" if self.parent else own


@dataclass(frozen=True, slots=True)
class Block:
    """Steps that stand beside each other: ids and fallbacks mean something among them."""

    members: tuple[LocatedStep, ...]
    path: Path
    workflow: LocatedWorkflow
    role: Role


class Hints:
    """Suggests names, for the first findings of a check only.

    Likeness is slow to measure. A spec with thousands of wrong names, made so on purpose or not, must not cost
    thousands of searches through thousands of names; whoever fixes the first fifty sees the next.
    """

    def __init__(self) -> None:
        self._left = MAX_HINTS

    def near(self, word: str, known: Collection[str]) -> str | None:
        """Say which name somebody probably meant, or which there are."""
        if self._left <= 0 or len(known) > MAX_HINT_NAMES:
            return None
        self._left -= 1
        return suggest(word, tuple(known))


@dataclass(frozen=True)
class SpecIndex:
    """A spec with an index of its parts.

    Attributes:
        agents: The root agent and then the components, as declared.
        workflows: The root workflow, where there is one, and then the components, as declared.
        blocks: Every list of steps of every workflow, outer before inner.
        steps: Every step of every workflow at any depth, as one reads them.
    """

    spec: Spec
    context: RuleContext
    agents: tuple[LocatedAgent, ...]
    workflows: tuple[LocatedWorkflow, ...]
    blocks: tuple[Block, ...]
    steps: tuple[LocatedStep, ...]
    hints: Hints = field(default_factory=Hints, compare=False)

    @classmethod
    def of(cls, spec: Spec, context: RuleContext) -> SpecIndex:
        """Index a spec."""
        workflows = tuple(_workflows(spec))
        walk = _Walk()
        for workflow in workflows:
            walk.workflow(workflow)
        return cls(spec, context, tuple(_agents(spec)), workflows, tuple(walk.blocks), tuple(walk.steps))

    def agent_named(self, name: str) -> Agent | None:
        """Return the agent a step may call by this name: a component, or the root agent by its own name."""
        found = self.spec.components.agents.get(name)
        if found is None and name == self.spec.agent.name:
            return self.spec.agent
        return found

    @cached_property
    def agent_names(self) -> Sequence[str]:
        """Names that :meth:`agent_named` knows."""
        return (*self.spec.components.agents, self.spec.agent.name)

    @cached_property
    def function_names(self) -> frozenset[str]:
        """Functions of the spec and of the embedding."""
        return self.context.functions | frozenset(self.spec.components.functions)

    @cached_property
    def tool_names(self) -> frozenset[str]:
        """Tools of the spec and of the embedding."""
        return self.context.tools | frozenset(self.spec.tools)


def _agents(spec: Spec) -> Iterator[LocatedAgent]:
    yield LocatedAgent(spec.agent, ("agent",))
    for name, agent in spec.components.agents.items():
        yield LocatedAgent(agent, ("components", "agents", name), name)


def _workflows(spec: Spec) -> Iterator[LocatedWorkflow]:
    if spec.workflow is not None:
        yield LocatedWorkflow(spec.workflow, ("workflow",))
    for name, workflow in spec.components.workflows.items():
        yield LocatedWorkflow(workflow, ("components", "workflows", name), name)


def workflow_steps(workflow: Workflow) -> tuple[str, Role, Sequence[Step] | Mapping[str, Step]]:
    """Return where a workflow keeps its steps: the key, what they are there, and the steps."""
    match workflow:
        case SequentialWorkflow():
            return "steps", "step", workflow.steps
        case GraphWorkflow():
            return "nodes", "node", workflow.nodes
        case Concurrent() | HandoffWorkflow() | GroupChatWorkflow():
            return "participants", "participant", workflow.participants


def children(step: Step) -> tuple[tuple[Path, tuple[Step, ...]], ...]:
    """Return the lists of steps that a step holds, with their paths below it."""
    match step:
        case LeafStep():
            return ()
        case ConditionStep():
            return ((("steps",), step.steps), (("else",), step.otherwise))
        case RouterStep():
            return tuple((("choices", name, "steps"), choice.steps) for name, choice in step.choices.items())
        case StepsStep() | ParallelStep() | LoopStep():
            return ((("steps",), step.steps),)


def reached_nodes(graph: GraphWorkflow) -> frozenset[str]:
    """Return the enabled nodes to which edges and fallbacks lead from the start."""
    ways: dict[str, list[str]] = {name: [] for name, node in graph.nodes.items() if node.enabled}
    for edge in graph.edges:
        if edge.source in ways and edge.target in ways:
            ways[edge.source].append(edge.target)
    for name, targets in ways.items():
        fallback = graph.nodes[name].fallback_ref
        if fallback in ways:
            targets.append(fallback)
    seen = {graph.start} & ways.keys()
    ahead = list(seen)
    while ahead:
        for target in ways[ahead.pop()]:
            if target not in seen:
                seen.add(target)
                ahead.append(target)
    return frozenset(seen)


class _Walk:
    """Collects blocks and steps; depth is bounded by the reader that made the spec."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.steps: list[LocatedStep] = []

    def workflow(self, at: LocatedWorkflow) -> None:
        key, role, steps = workflow_steps(at.workflow)
        path = (*at.path, key)
        if isinstance(steps, Mapping):
            members = tuple(LocatedStep(step, (*path, name), at, role, name) for name, step in steps.items())
        else:
            members = tuple(LocatedStep(step, (*path, index), at, role) for index, step in enumerate(steps))
        self._block(Block(members, path, at, role))

    def _block(self, block: Block) -> None:
        self.blocks.append(block)
        for member in block.members:
            self.steps.append(member)
            for below, steps in children(member.step):
                path = (*member.path, *below)
                inner = tuple(
                    LocatedStep(step, (*path, index), block.workflow, "step", parent=member.place)
                    for index, step in enumerate(steps)
                )
                self._block(Block(inner, path, block.workflow, "step"))
