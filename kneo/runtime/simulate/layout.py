"""The layout of a program: its steps, questions and the words of its conditions, for a simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kneo.runtime.interpreter.branch import BranchNode, RouterNode
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.node import Activity, ProgramNode
from kneo.runtime.interpreter.program import Program
from kneo.runtime.interpreter.serial import GraphWorkflowNode, LoopNode
from kneo.runtime.interpreter.step import StepNode
from kneo.runtime.simulate.calls import GatedCall, gated_calls
from kneo.spec.models.human import Condition


@dataclass(slots=True)
class Layout:
    """Every step, question and word of a program.

    Attributes:
        steps: Paths of steps with an activity.
        gates: Path and position of every question.
        caught: Paths of steps whose failure does not end the run.
        words: The texts that conditions compare with, in the order of the spec.
        calls: The gated tool calls of steps, by their paths.
    """

    steps: set[str] = field(default_factory=set)
    gates: set[tuple[str, str]] = field(default_factory=set)
    caught: set[str] = field(default_factory=set)
    words: dict[str, None] = field(default_factory=dict)
    calls: Mapping[str, tuple[GatedCall, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program) -> Layout:
        layout = cls(calls=gated_calls(program))
        layout._add(program.root, caught=False)
        for path, calls in layout.calls.items():
            for call in calls:
                layout.gates |= {(path, f"{call.tool}.{gate.position_id}") for gate in call.gates}
        return layout

    def _add(self, node: ProgramNode, *, caught: bool) -> None:
        match node:
            case StepNode():
                self._add_step(node, caught=caught)
                return
            case BranchNode():
                self._add_conditions(node.when)
            case LoopNode():
                self._add_conditions(node.until)
                self._add_gate(node.path, node.each)
            case RouterNode():
                self._add_router(node)
            case GraphWorkflowNode():
                self._add_conditions(*(edge.condition for edges in node.edges.values() for edge in edges))
        for part in node.parts():
            self._add(part, caught=caught)

    def _add_step(self, step: StepNode, *, caught: bool) -> None:
        for gate in (step.before, step.after, step.error, step.question):
            self._add_gate(step.path, gate)
        inner = caught or step.error is not None or step.on_error in {"continue", "fallback"}
        if isinstance(step.body, ProgramNode):
            # A retried step comes to the same result; a retried group begins again from its first step.
            self._add(step.body, caught=inner or step.max_retries > 0)
        elif isinstance(step.body, Activity):
            self.steps.add(step.path)
            if inner:
                self.caught.add(step.path)
        if step.fallback is not None:
            self._add(step.fallback, caught=caught)

    def _add_router(self, router: RouterNode) -> None:
        selector = router.selector
        if router.asks_first or selector is None:
            self._add_gate(router.path, router.route)
        if selector is not None:
            self._add_conditions(*(when for when, _ in selector.conditions))

    def _add_gate(self, path: str, gate: CompiledGate | None) -> None:
        if gate is not None:
            self.gates.add((path, gate.position_id))
            self._add_conditions(gate.when)

    def _add_conditions(self, *conditions: Condition | None) -> None:
        for condition in conditions:
            self.words |= dict.fromkeys(_words(condition) if condition is not None else ())


def _words(condition: Condition) -> Iterator[str]:
    if condition.type in {"output_contains", "output_equals", "variable_equals"} and condition.value is not None:
        yield str(condition.value)
    for part in (*condition.conditions, *([condition.condition] if condition.condition else [])):
        yield from _words(part)
