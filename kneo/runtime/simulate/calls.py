"""Gated tool calls of a program: the calls of each agent step about which a person is asked, for a simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kneo.agents.turn import CallQuestion
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.node import Activity, ProgramNode
from kneo.runtime.interpreter.program import ROOT_AGENT, Program
from kneo.runtime.interpreter.step import StepNode
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec

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
                calls = tuple(_of_step(program, node.body))
                if calls:
                    found[node.path] = calls
    return found


def _of_step(program: Program, activity: Activity) -> Iterator[GatedCall]:
    spec = program.spec
    name = activity.ref or spec.agent.name
    agent = spec.agent if activity.ref == ROOT_AGENT else _agent(spec, name)
    if agent is not None:
        yield from _of_agent(program, activity, name, agent, "", 0)


def _agent(spec: Spec, name: str) -> Agent | None:
    found = spec.components.agents.get(name)
    return spec.agent if found is None and name == spec.agent.name else found


def _of_agent(
    program: Program, activity: Activity, name: str, agent: Agent, above: str, depth: int
) -> Iterator[GatedCall]:
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
            yield from _of_agent(program, activity, str(declared.agent), inner, f"{key}:1>", depth + 1)


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
