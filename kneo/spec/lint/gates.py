"""Gates that mean something where they stand. Which places a step or tool has is checked with its shape."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.gates import LocatedGate, all_gates, named_human
from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.index import SpecIndex
from kneo.spec.models import RouterStep
from kneo.spec.models.human import Decision, Position

DECISIONS: dict[Position, tuple[Decision, ...]] = {
    "before": ("approved", "rejected"),
    "after": ("approved", "rejected", "edited"),
    "each": ("approved", "rejected", "edited"),
    "route": ("selected",),
    "error": ("selected",),
    "external": ("provided", "rejected"),
}
"""The answers that have an effect at each place."""

ERROR_OPTIONS = ("retry", "skip", "stop")


def decisions_at(gate: LocatedGate) -> tuple[Decision, ...]:
    """Return the answers that have an effect at a gate; before a tool its arguments can be edited too."""
    edits = gate.position == "before" and gate.tool is not None
    return (*DECISIONS[gate.position], "edited") if edits else DECISIONS[gate.position]


def gates(view: SpecIndex) -> Iterator[Diagnostic]:
    """Gates ask somebody who exists, and offer answers that have an effect where they stand."""
    for at in all_gates(view):
        yield from _asked(view, at)
        yield from _decisions(view, at)
        yield from _rejection(at)
        yield from _choices(at)


def _asked(view: SpecIndex, at: LocatedGate) -> Iterator[Diagnostic]:
    humans = view.spec.components.humans
    if isinstance(at.gate.human, str) and at.gate.human not in humans:
        message = f"The gate asks {at.gate.human}, which is not in components.humans."
        hint = view.hints.near(at.gate.human, humans) or "Declare it in components.humans."
        yield error("E_REVIEW_HUMAN_REF", message, (*at.path, "human"), suggestion=hint)


def _decisions(view: SpecIndex, at: LocatedGate) -> Iterator[Diagnostic]:
    legal = decisions_at(at)
    hint = f"Here the answers are {', '.join(legal)}."
    if at.gate.decisions is not None:
        wrong = [decision for decision in at.gate.decisions if decision not in legal]
        if wrong:
            message = f"review.{at.position} cannot be answered with {', '.join(wrong)}."
            yield error("E_REVIEW_DECISION", message, (*at.path, "decisions"), suggestion=hint)
        return
    human = named_human(at.gate, view.spec.components.humans)
    inherited = human.decisions if human else None
    if inherited is not None and not frozenset(inherited) & frozenset(legal):
        message = f"The human of this gate only answers with {', '.join(inherited)}."
        yield error("E_REVIEW_DECISION", message, (*at.path, "human"), suggestion=hint)


def _rejection(at: LocatedGate) -> Iterator[Diagnostic]:
    if at.position in {"route", "error"} and at.gate.on_reject is not None:
        message = f"Nothing can be rejected at review.{at.position}: a person chooses there."
        hint = "Leave on_reject out; ask with review.before whether to go on at all."
        yield error("E_REVIEW_REJECT", message, (*at.path, "on_reject"), suggestion=hint)


def _choices(at: LocatedGate) -> Iterator[Diagnostic]:
    if at.gate.options is None:
        return
    step = at.step.step if at.step else None
    if at.position == "error":
        legal: tuple[str, ...] = ERROR_OPTIONS
    elif at.position == "route" and isinstance(step, RouterStep):
        legal = tuple(step.choices)
    else:
        return
    wrong = [option for option in at.gate.options if option not in legal]
    if wrong:
        message = f"review.{at.position} cannot offer {', '.join(wrong)}."
        hint = f"Here the options are {', '.join(legal)}."
        yield error("E_REVIEW_OPTIONS", message, (*at.path, "options"), suggestion=hint)
