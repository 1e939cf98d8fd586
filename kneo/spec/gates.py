"""The positions at which a person is asked: one row each, with the decisions, effects and words of the position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

Position: TypeAlias = Literal["before", "after", "each", "route", "error", "external"]
"""A name under ``review``."""

REVIEW_POSITIONS: tuple[Position, ...] = get_args(Position)

Decision: TypeAlias = Literal["approved", "rejected", "edited", "selected", "provided"]
RejectEffect: TypeAlias = Literal["stop", "cancel", "skip", "retry", "else", "fail", "continue", "tell_agent"]

Reviewed: TypeAlias = Literal["question", "input", "result", "failure", "call"]

_BEFORE_STEP = ("stop", "cancel", "skip", "fail", "else", "continue")
_STEP = ("stop", "cancel", "skip", "fail", "retry", "else", "continue")
_CALL = ("tell_agent", "stop", "fail")

ERROR_OPTIONS = ("retry", "skip", "stop")
"""The options of a person at ``error``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePosition:
    """A position at which a person is asked.

    Attributes:
        name: ``step`` (a step of kind human), ``wait`` (a function that waits), ``tool`` (``review.before`` of a tool), or
            the name under ``review``.
        reviewed: What the person decides about: the input of a step that has not run, its result, its failure, a call of a tool,
            or a question by itself.
        request_type: The kind of the task where its human declares none.
        decisions: The decisions that have an effect.
        rejections: The possible effects of a rejection, the default first. ``else`` needs a condition.
        has_options: Whether the position itself has options to select from: the choices of a router, those of a failure.
        where: Where the question is asked; ``{}`` stands for the step.
        of_tool: Where a question about calls of a tool is asked; ``{}`` stands for the tool.
        asks: The description of the field under ``review``.
    """

    name: str
    reviewed: Reviewed
    request_type: str
    decisions: tuple[Decision, ...]
    rejections: tuple[str, ...] = _STEP
    has_options: bool = False
    where: str
    of_tool: str = ""
    asks: str | None = None

    @property
    def can_reject(self) -> bool:
        """Whether a rejection is among the decisions; a person who selects cannot reject."""
        return "rejected" in self.decisions


def _table(*rows: GatePosition) -> Mapping[str, GatePosition]:
    return MappingProxyType({row.name: row for row in rows})


POSITIONS = _table(
    GatePosition(
        name="step",
        reviewed="question",
        request_type="approval",
        decisions=("approved", "rejected", "edited", "selected", "provided"),
        where="at {}",
    ),
    GatePosition(
        name="before",
        reviewed="input",
        request_type="approval",
        decisions=("approved", "rejected"),
        rejections=_BEFORE_STEP,
        where="before {}",
        asks="Before it runs: may it, and with what?",
    ),
    GatePosition(
        name="after",
        reviewed="result",
        request_type="review",
        decisions=("approved", "rejected", "edited"),
        where="after {}",
        asks="After it ran: is the result good?",
    ),
    GatePosition(
        name="each",
        reviewed="result",
        request_type="review",
        decisions=("approved", "rejected", "edited"),
        where="after each round of {}",
        asks="After each round of a loop: is this good enough?",
    ),
    GatePosition(
        name="route",
        reviewed="input",
        request_type="selection",
        decisions=("selected",),
        has_options=True,
        where="at the route of {}",
        asks="At a router: which way?",
    ),
    GatePosition(
        name="error",
        reviewed="failure",
        request_type="error",
        decisions=("selected",),
        has_options=True,
        where="after a failure of {}",
        asks="When it fails: retry, skip or stop?",
    ),
    GatePosition(
        name="external",
        reviewed="call",
        request_type="freeform",
        decisions=("provided", "rejected"),
        rejections=_CALL,
        where="for a call in {}",
        of_tool="for a call of {}",
        asks="Instead of a call: a person or system outside carries it out.",
    ),
    GatePosition(
        name="tool",
        reviewed="call",
        request_type="approval",
        decisions=("approved", "rejected", "edited"),
        rejections=_CALL,
        where="before a call in {}",
        of_tool="before a call of {}",
    ),
    GatePosition(
        name="wait",
        reviewed="question",
        request_type="freeform",
        decisions=("provided", "selected", "rejected"),
        rejections=("tell", *_STEP),
        has_options=True,
        where="at {}",
    ),
)
"""Every position by its name."""


def positions_of(reviewed: Reviewed) -> frozenset[str]:
    """Return the names of the positions at which a person decides about one thing."""
    return frozenset(row.name for row in POSITIONS.values() if row.reviewed == reviewed)


def gate_position(position: str, *, at_tool: bool = False) -> GatePosition:
    """Return the row of a name under ``review`` of a step or, ``at_tool``, of a tool."""
    return POSITIONS["tool" if at_tool and position == "before" else position]


def default_rejection(position: str, *, at_condition: bool = False) -> str:
    """Return the effect of a rejection where neither the gate nor its human states one.

    Args:
        position: The name of the position.
        at_condition: Whether the question is at a condition, which runs its other branch.
    """
    return "else" if at_condition and position == "before" else POSITIONS[position].rejections[0]


def rejection_effect(position: str, stated: str | None) -> str:
    """Return the effect of a rejection at a position.

    An effect that is impossible there, which a shared human can state, stops the run.

    Args:
        position: The name of the position.
        stated: The effect that the gate or its human states.
    """
    possible = POSITIONS[position].rejections
    if stated is None:
        return possible[0]
    return stated if stated in possible else "stop"
