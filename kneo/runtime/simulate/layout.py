"""What a program consists of, as far as a simulation has to know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kneo.runtime.interpreter.branch import BranchNode, RouterNode
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.graph import GraphNode
from kneo.runtime.interpreter.loop import LoopNode
from kneo.runtime.interpreter.node import Activity, ProgramNode
from kneo.runtime.interpreter.parallel import ParallelNode
from kneo.runtime.interpreter.program import Program
from kneo.runtime.interpreter.sequence import SequenceNode
from kneo.runtime.interpreter.step import HumanQuestion, StepNode
from kneo.spec.models import Condition


@dataclass(frozen=True, slots=True)
class Layout:
    """Every step, question and word of a program.

    Attributes:
        steps: Paths of steps that do something.
        gates: Path and spot of every question.
        caught: Paths of steps after whose failure something else happens than the end of the run.
        words: What conditions compare texts with, in the order of the spec.
        choices: What a function may choose, by the path of its router.
    """

    steps: frozenset[str]
    gates: frozenset[tuple[str, str]]
    caught: frozenset[str]
    words: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]


def layout_of(program: Program) -> Layout:
    """Look through a program once."""
    survey = _Survey()
    survey.node(program.root, caught=False)
    return Layout(
        steps=frozenset(survey.steps),
        gates=frozenset(survey.gates),
        caught=frozenset(survey.caught),
        words=tuple(survey.words),
        choices=survey.choices,
    )


@dataclass(slots=True)
class _Survey:
    steps: set[str] = field(default_factory=set)
    gates: set[tuple[str, str]] = field(default_factory=set)
    caught: set[str] = field(default_factory=set)
    words: dict[str, None] = field(default_factory=dict)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def node(self, node: ProgramNode, *, caught: bool) -> None:
        match node:
            case StepNode():
                self._step(node, caught=caught)
            case SequenceNode() | ParallelNode():
                self._all(node.children, caught=caught)
            case BranchNode():
                self._condition(node.when)
                self._all((node.then, node.otherwise), caught=caught)
            case LoopNode():
                self._condition(node.until)
                self._gate(node.path, node.each)
                self.node(node.body, caught=caught)
            case RouterNode():
                self._router(node)
                self._all(node.choices.values(), caught=caught)
            case GraphNode():
                for ways in node.ways.values():
                    for way in ways:
                        self._condition(way.condition)
                self._all(node.nodes.values(), caught=caught)

    def _all(self, nodes: Iterable[ProgramNode], *, caught: bool) -> None:
        for node in nodes:
            self.node(node, caught=caught)

    def _step(self, step: StepNode, *, caught: bool) -> None:
        for gate in (step.before, step.after, step.error):
            self._gate(step.path, gate)
        inner = caught or step.error is not None or step.on_error in {"continue", "fallback"}
        if isinstance(step.body, ProgramNode):
            # A step that is repeated by itself comes to the same again; a group is begun again from its first step.
            inner = inner or step.max_retries > 0
        match step.body:
            case Activity():
                self.steps.add(step.path)
                if inner:
                    self.caught.add(step.path)
            case HumanQuestion():
                self._gate(step.path, step.body.gate)
            case body:
                self.node(body, caught=inner)
        if step.fallback is not None:
            self.node(step.fallback, caught=caught)

    def _router(self, router: RouterNode) -> None:
        chosen = router.selector
        if router.asks_first or chosen is None:
            self._gate(router.path, router.route)
        if chosen is None:
            return
        if chosen.function is not None:
            self.choices[router.path] = tuple(router.choices)
        for when, _ in chosen.conditions:
            self._condition(when)

    def _gate(self, path: str, gate: CompiledGate | None) -> None:
        if gate is not None:
            self.gates.add((path, gate.spot))
            self._condition(gate.when)

    def _condition(self, condition: Condition | None) -> None:
        for word in _words(condition) if condition is not None else ():
            self.words[word] = None


def _words(condition: Condition) -> Iterator[str]:
    if condition.type in {"output_contains", "output_equals", "variable_equals"} and condition.value is not None:
        yield str(condition.value)
    for part in (*condition.conditions, *([condition.condition] if condition.condition else [])):
        yield from _words(part)
