"""Where people are asked: every gate of a spec, and what holds for it once its human is taken into account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from kneo.spec.documents import Path
from kneo.spec.gates import default_rejection
from kneo.spec.index import LocatedStep, SpecIndex
from kneo.spec.models import ConditionStep, Gate, Human, Step, Tool
from kneo.spec.models.human import Position

T = TypeVar("T")

DEFAULT_HUMAN = "default"
"""The name in components.humans that a gate means when it names nobody."""

Owner: TypeAlias = Literal["step", "tool"]


@dataclass(frozen=True, slots=True)
class LocatedGate:
    """A gate, where it is, and what it stands at: a step or the tool of that name."""

    gate: Gate
    path: Path
    position: Position
    step: LocatedStep | None = None
    tool: str | None = None


def all_gates(view: SpecIndex) -> Iterator[LocatedGate]:
    """Yield every gate at steps and then at tools."""
    for at in view.steps:
        if at.step.review is not None:
            for position, gate in at.step.review.gates().items():
                yield LocatedGate(gate, (*at.path, "review", position), position, step=at)
    for name, tool in view.spec.tools.items():
        for position, gate in tool_gates(tool).items():
            yield LocatedGate(gate, ("tools", name, "review", position), position, tool=name)


def tool_gates(tool: Tool) -> Mapping[Position, Gate]:
    """Return the gates at the calls of a tool."""
    return {} if tool.review is None else tool.review.gates()


def named_human(gate: Gate, humans: Mapping[str, Human]) -> Human | None:
    """Return whom a gate asks: written out, by name, or the default one."""
    if isinstance(gate.human, Human):
        return gate.human
    return humans.get(DEFAULT_HUMAN if gate.human is None else gate.human)


def effective_human(gate: Gate, humans: Mapping[str, Human]) -> Human:
    """Return what holds at a gate: what it says itself, and otherwise what its human says."""
    human = named_human(gate, humans)
    if human is None:
        return gate
    own = {name: getattr(gate, name) for name in gate.model_fields_set if name in Human.model_fields}
    return human.model_copy(update=own)


def rejection_at(gate: LocatedGate) -> str:
    """Return what a rejection does at a gate where nobody says it."""
    if gate.tool is not None:
        return default_rejection("tool")
    return default_rejection_at(gate.position, gate.step.step if gate.step is not None else None)


def default_rejection_at(position: Position, step: Step | None) -> str:
    """Return what a rejection does at a position of a step where nobody says it."""
    return default_rejection(position, at_condition=isinstance(step, ConditionStep))
