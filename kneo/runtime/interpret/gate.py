"""Questions to people: when they are asked, and what an answer does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kneo.records.run import RunError
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpret.values import Value
from kneo.spec.gates import asks
from kneo.spec.models.conditions import Condition
from kneo.spec.models.human import Human

REJECTED = "human_rejected"

_ATTEMPT = re.compile(r"@[0-9]+")

DEFAULT_RETRIES = 3
"""How often a rejected result is made anew where a gate does not say it."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One question at one position of a step.

    ``position`` is ``step`` for a step of kind human, else the name under ``review``; ``added`` names the gate of an
    environment that stands around what the spec says.
    """

    position: str
    human: Human
    decisions: tuple[DecisionKind, ...]
    on_reject: str
    max_retries: int = DEFAULT_RETRIES
    when: Condition | None = None
    sample: float | None = None
    name: str | None = None
    """What the question is called in recorded answers, instead of its place."""
    added: str | None = None

    @property
    def spot(self) -> str:
        """Which of the questions at one place this is."""
        return f"{self.position}+{self.added}" if self.added is not None else self.position

    def asks(self, value: Value, place: str, case: str) -> bool:
        """Return whether a person has to be asked about a value.

        Every attempt, and every run of the same case, draws the same chance: what was asked is asked again.
        """
        stable = _ATTEMPT.sub("", place)
        return asks(self.when, self.sample, value.facts, seed=f"{case}:{stable}.{self.spot}")

    def key(self, place: str, repetition: int = 0) -> str:
        """Name the question: the same over resume and replay."""
        again = f"@{repetition}" if repetition else ""
        return f"{self.name or place}{again}.{self.spot}"


def effect_of(gate: Gate, decision: Decision) -> str:
    """Say what a rejection does; a deadline may have decided on something else than the gate's own."""
    return decision.effect or gate.on_reject


def feedback_of(decision: Decision) -> str:
    return decision.feedback or decision.content or decision.comment or ""


def rejection(place: str, decision: Decision) -> RunError:
    said = feedback_of(decision)
    tail = f": {said}" if said else "."
    return RunError(type=REJECTED, message=f"{decision.actor} rejected {place}{tail}")
