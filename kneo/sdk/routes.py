"""Workflows whose way is chosen by Python functions: handoffs with a selector, and graphs with conditions.

A handoff is a loop around a router. A graph is a loop of supersteps: the nodes whose turn it is run at the same time, then a
step evaluates the conditions of their edges.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kneo.embed.runs import RunSnapshot, Work
from kneo.embed.steps import StepContext, StepOutput, below
from kneo.records.run import StepRecord
from kneo.sdk.builder import Json, call, check_parameters
from kneo.sdk.messages import Message, RunConfig, RunResult
from kneo.sdk.participants import ConversationBuilder, WorkflowPart, as_one_step, output_of

DEFAULT_ITERATIONS = 10

HandoffFunction: TypeAlias = Callable[[Sequence[Message], RunConfig, int], str | Awaitable[str | None] | None]
"""``f(messages, config, turn)`` returns the name of the next participant, or ``None`` to stop; the first turn is 0."""

EdgeFunction: TypeAlias = Callable[[RunResult, Sequence[Message], RunConfig], bool | Awaitable[bool]]
"""``f(result of the node, messages, config)`` decides whether an edge is followed."""

STOP = ".stop"
"""The name of the choice, and of the metadata, that ends a loop."""

TRUE, FALSE = "true", "false"


def _loop(builder: ConversationBuilder, name: str, limit: int, steps: Sequence[Json]) -> Json:
    return {
        "id": name,
        "kind": "loop",
        "max_iterations": builder.config.max_iterations or limit,
        "until": {"type": "metadata_equals", "key": STOP, "value": TRUE},
        "steps": list(steps),
    }


def _hidden_step(builder: ConversationBuilder, path: str, name: str, work: Work) -> Json:
    builder.hidden.add(below(path, name))
    return {"id": name, "kind": "function", "ref": builder.function(below(path, name), work)}


@dataclass(frozen=True, kw_only=True)
class SelectedHandoff(WorkflowPart):
    """A handoff whose next participant a function selects."""

    select: HandoffFunction
    max_iterations: int = DEFAULT_ITERATIONS

    def __post_init__(self) -> None:
        check_parameters(self.select, ("messages", "config", "turn"), f"The selector of {self.name}")

    def workflow(self, builder: ConversationBuilder, path: str) -> Json:
        turns = below(path, "turns")
        turn = below(turns, "turn")
        choices: Json = {member.name: {"steps": [as_one_step(builder, member, turn)]} for member in self.members}
        choices[STOP] = {"steps": [_hidden_step(builder, turn, STOP, _stop)]}

        async def select(text: str, context: StepContext) -> StepOutput:
            snapshot = await builder.read(context)
            messages = builder.conversation(snapshot, context.step_id, text)
            selected = await call(self.select, list(messages), builder.config_of(snapshot), _round(context) - 1)
            return StepOutput(text=STOP if selected is None else str(selected))

        builder.hidden.add(turn)
        builder.groups |= {turns, turn}
        router: Json = {"id": "turn", "kind": "router", "choices": choices}
        router["selector"] = builder.function(f"{turn}.select", select)
        return {**self.head(), "type": "sequential", "steps": [_loop(builder, "turns", self.max_iterations, [router])]}


async def _stop(text: str, _context: StepContext) -> StepOutput:
    return StepOutput(text=text, metadata={STOP: TRUE})


def _round(context: StepContext) -> int:
    """Return the round of the innermost loop around a step."""
    return int(re.findall(r"#([0-9]+)", context.location)[-1])


@dataclass(frozen=True)
class WorkflowEdge:
    """An edge of a graph; without a condition it is always followed.

    Attributes:
        label: A name for readers of the program; the spec has none.
    """

    source: str
    target: str
    condition: EdgeFunction | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.condition is not None:
            who = f"The condition of the edge from {self.source} to {self.target}"
            check_parameters(self.condition, ("result", "messages", "config"), who)


@dataclass(frozen=True, kw_only=True)
class SuperstepGraph(WorkflowPart):
    """A graph in which every edge whose condition holds is followed."""

    starts: Sequence[str]
    edges: Sequence[WorkflowEdge]
    max_iterations: int = DEFAULT_ITERATIONS

    def workflow(self, builder: ConversationBuilder, path: str) -> Json:
        loop = below(path, "supersteps")
        superstep, routing = below(loop, "superstep"), below(loop, "edges")

        async def begin(text: str, _context: StepContext) -> StepOutput:
            return StepOutput(text=text, metadata=self._turns(self.starts))

        async def route(text: str, context: StepContext) -> StepOutput:
            snapshot = await builder.read(context)
            begun = (each.sequence for each in snapshot.steps if each.step_id in {routing, below(path, "begin")})
            outputs = self._outputs(snapshot, superstep, max(begun))
            text = [text, *outputs.values()][-1]
            messages = builder.conversation(snapshot, context.step_id, text)
            reached = []
            for name, output in outputs.items():
                result = RunResult([Message("assistant", output, name)])
                for edge in [each for each in self.edges if each.source == name]:
                    arguments = (result, list(messages), builder.config_of(snapshot))
                    if edge.condition is None or await call(edge.condition, *arguments):
                        reached.append(edge.target)
            return StepOutput(text=text, metadata=self._turns(reached))

        builder.supersteps[superstep] = routing
        builder.concurrent[superstep] = [member.name for member in self.members]
        builder.groups |= {loop, superstep, *(below(superstep, member.name) for member in self.members)}
        nodes: list[Json] = [
            {
                "id": member.name,
                "kind": "condition",
                "when": {"type": "metadata_equals", "key": _turn(member.name), "value": TRUE},
                "steps": [as_one_step(builder, member, below(superstep, member.name))],
            }
            for member in self.members
        ]
        parallel: Json = {"id": "superstep", "kind": "parallel", "steps": nodes}
        body = [parallel, _hidden_step(builder, loop, "edges", route)]
        first = _hidden_step(builder, path, "begin", begin)
        steps = [first, _loop(builder, "supersteps", self.max_iterations, body)]
        return {**self.head(), "type": "sequential", "steps": steps}

    def _turns(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the metadata from which the nodes of the next superstep read whether it is their turn."""
        turns = {_turn(member.name): TRUE if member.name in names else FALSE for member in self.members}
        return {**turns, STOP: FALSE if names else TRUE}

    def _outputs(self, snapshot: RunSnapshot, superstep: str, after: int) -> Mapping[str, str]:
        """Return the outputs of the nodes of the last superstep, in the order of the graph's nodes."""
        last: dict[str, StepRecord] = {}
        for step in snapshot.steps:
            if step.sequence > after and step.step_id.startswith(f"{superstep}/"):
                last[step.step_id.removeprefix(f"{superstep}/").partition("/")[0]] = step
        return {member.name: output_of(snapshot, last[member.name]) for member in self.members if member.name in last}


def _turn(name: str) -> str:
    return f".turn.{name}"
