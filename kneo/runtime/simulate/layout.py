"""The layout of a program for a simulation: its steps, questions, gated calls, and the words of its conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kneo.agents.turn import CallQuestion
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.branch import BranchNode, RouterNode
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.node import Activity, ProgramNode
from kneo.runtime.interpreter.program import Program
from kneo.runtime.interpreter.serial import GraphWorkflowNode, LoopNode
from kneo.runtime.interpreter.step import StepNode
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.agent import Agent
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


MAX_DEPTH = 5
"""Agents behind agents; a run refuses deeper ones."""


@dataclass(frozen=True, slots=True)
class GatedCall:
    """One call of a tool, and its questions in the order in which they are asked, each with its gate."""

    tool: str
    questions: tuple[CallQuestion, ...]
    gates: tuple[CompiledGate, ...]

    def key(self, location: str) -> str:
        """Return the key of the first question of a step at a location, without the digest of the arguments."""
        return f"{self.gates[0].name or location}.{self.questions[0].task_key}"

    def was_begun(self, answers: Mapping[str, Decision]) -> bool:
        """Tell whether a person was asked about the call."""
        return any(question.key in answers for question in self.questions)

    def next_question(self, answers: Mapping[str, Decision]) -> CallQuestion | None:
        """Return the next question about the call; None where it is decided."""
        for question in self.questions:
            if question.key not in answers:
                return question
            if answers[question.key].kind is DecisionKind.REJECTED:
                return None
        return None


def gated_calls(program: Program) -> Mapping[str, tuple[GatedCall, ...]]:
    """Return the gated calls of each step by its path. Gates that ask under a condition are among them."""
    found: dict[str, tuple[GatedCall, ...]] = {}
    pending: list[ProgramNode] = [program.root]
    while pending:
        node = pending.pop()
        pending += node.parts()
        if isinstance(node, StepNode):
            pending += [part for part in (node.body, node.fallback) if isinstance(part, ProgramNode)]
            if isinstance(node.body, Activity) and node.body.kind in {"agent", "guardrail"} and not node.body.choices:
                calls = tuple(_calls(program, node.body, node.body.ref, program.agents[node.body.ref]))
                if calls:
                    found[node.path] = calls
    return found


def _calls(
    program: Program, activity: Activity, ref: str, agent: Agent, above: str = "", depth: int = 0
) -> Iterator[GatedCall]:
    """Yield the gated calls of a step's agent, and of those behind its tools."""
    name = ref or program.agent_name
    for tool in callable_tools(agent):
        key = f"{above}{tool}"
        ids = program.tool_gates.ids_of(activity.call_gates, name, tool)
        if ids:
            gates = tuple(program.tool_gates.compiled[gate] for gate in ids)
            questions = tuple(
                _question(name, tool, key, *each, is_first=not number)
                for number, each in enumerate(zip(ids, gates, strict=True))
            )
            yield GatedCall(tool, questions, gates)
        declared = program.spec.tools.get(tool)
        inner = program.spec.components.agents.get(declared.agent) if declared and declared.agent else None
        if inner is not None and declared is not None and depth < MAX_DEPTH:
            yield from _calls(program, activity, str(declared.agent), inner, f"{key}:1>", depth + 1)


def _question(agent: str, tool: str, key: str, gate_id: str, gate: CompiledGate, *, is_first: bool) -> CallQuestion:
    return CallQuestion(
        key=f"{key}:{gate_id}",
        task_key=f"{key}:1" if is_first else f"{key}:1+{gate_id}",
        kind="external" if gate.position == "external" else "approval",
        gate=gate_id,
        agent=agent,
        tool=tool,
        arguments={},
    )
