"""Questions to people: when they are asked, and what an answer does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from kneo.digest import digest_of_json
from kneo.records.run import RunError
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.values import Value
from kneo.spec.gates import asks
from kneo.spec.models.human import Condition, Human

REJECTED = "human_rejected"

_ATTEMPT = re.compile(r"@[0-9]+")

DEFAULT_RETRIES = 3
"""How often a rejected result is made anew where a gate does not say it."""


@dataclass(frozen=True, kw_only=True)
class CompiledGate:
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


def effect_of(gate: CompiledGate, decision: Decision) -> str:
    """Say what a rejection does; a deadline may have decided on something else than the gate's own."""
    return decision.effect or gate.on_reject


def feedback_of(decision: Decision) -> str:
    return decision.feedback or decision.content or decision.comment or ""


def rejection(place: str, decision: Decision) -> RunError:
    said = feedback_of(decision)
    tail = f": {said}" if said else "."
    return RunError(type=REJECTED, message=f"{decision.actor} rejected {place}{tail}")


DEFAULT_HUMAN = "default"

TELL = "tell"
"""What a rejection does: the step hears of it and goes on as it likes."""


@dataclass(frozen=True, kw_only=True)
class WaitRequest:
    """What somebody is asked for. ``index`` counts the questions of one step."""

    prompt: str
    index: int
    name: str | None = None
    """What the question is called in recorded answers, below the step's place."""
    key: str | None = None
    """Its whole name, where that is not below the step's place."""
    human: str | None = None
    show: str | None = None
    """What to look at before answering."""
    schema: Mapping[str, object] | None = None
    options: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """Name the question: an answer to another one is none to this."""
        schema = dict(self.schema) if self.schema is not None else None
        return digest_of_json([self.prompt, self.show, schema, list(self.options or ())])

    @property
    def subject(self) -> str:
        return self.prompt if self.show is None else f"{self.prompt}\n\n{self.show}"

    def key_at(self, place: str) -> str:
        if self.key is not None:
            return self.key
        last = self.name or ("wait" if self.index == 0 else f"wait:{self.index}")
        return f"{place}.{last}"

    def gate(self, gates: Mapping[str, CompiledGate]) -> CompiledGate | None:
        """Make the question of what its human says and what is asked here; ``None`` where nobody knows that human."""
        known = gates.get(self.human or DEFAULT_HUMAN)
        if known is None:
            return None
        first = DecisionKind.SELECTED if self.options else DecisionKind.PROVIDED
        human = known.human.model_copy(
            update={"answer_schema": dict(self.schema) if self.schema else None, "fields": (), "options": self.options}
        )
        return replace(known, human=human, decisions=(first, DecisionKind.REJECTED))

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_wait_request(kept: object) -> WaitRequest:
    """Read what ``as_json`` wrote."""
    assert isinstance(kept, Mapping)
    options = kept.get("options")
    return WaitRequest(**{**kept, "options": tuple(options) if options is not None else None})


@dataclass(frozen=True, kw_only=True)
class WaitAnswer:
    """What somebody gave, or that they would not."""

    question: str
    """The digest of the question that was answered."""
    value: object = None
    declined: bool = False
    reason: str | None = None


def read_wait_answers(kept: object) -> tuple[WaitAnswer, ...]:
    """Read what a frame keeps of the answers so far."""
    assert isinstance(kept, list | tuple)
    return tuple(WaitAnswer(**one) for one in kept)


def given(wanted: WaitRequest, decision: Decision) -> WaitAnswer:
    """Turn a decision into what the step finds."""
    if decision.kind is DecisionKind.REJECTED:
        reason = decision.feedback or decision.content or decision.comment
        return WaitAnswer(question=wanted.digest, declined=True, reason=reason)
    return WaitAnswer(question=wanted.digest, value=_value(decision))


def _value(decision: Decision) -> object:
    if decision.kind is DecisionKind.SELECTED:
        several = decision.selected_options
        return list(several) if len(several) > 1 else decision.selected_option
    if decision.values is not None:
        return dict(decision.values)
    return decision.data if decision.data is not None else decision.content
