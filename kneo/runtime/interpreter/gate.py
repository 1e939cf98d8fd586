"""Gates: when a person is asked, and the effect of the answer; and requests of functions that wait for a person.

A function that waits begins again from the top when the answer is recorded, and finds the answer where it asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kneo.function_context import WaitAnswer, WaitRequest
from kneo.records.run import RunError
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.values import Value
from kneo.spec.conditions import asks
from kneo.spec.models.human import Condition, Human

REJECTED = "human_rejected"

_ATTEMPT = re.compile(r"@[0-9]+")

DEFAULT_RETRIES = 3
"""Repetitions of a rejected result, where a gate does not limit them."""

DEFAULT_HUMAN = "default"

NOTIFY_STEP = "tell"
"""The effect of a rejection that only the waiting function handles."""


@dataclass(frozen=True, kw_only=True)
class CompiledGate:
    """One question at one position of a step.

    ``position`` is ``step`` for a step of kind human, else the name under ``review``; ``added`` is the name of a gate that
    an environment adds around the spec's own ones.
    """

    position: str
    human: Human
    decisions: tuple[DecisionKind, ...]
    on_reject: str
    max_retries: int = DEFAULT_RETRIES
    when: Condition | None = None
    sample: float | None = None
    name: str | None = None
    """The name in recorded answers, instead of the location."""
    added: str | None = None
    for_caller: bool = False
    """Whether the program that makes a call is asked to make it itself; ``human`` takes over where it reports no result."""

    @property
    def position_id(self) -> str:
        """The position, unique among the gates of one step."""
        return f"{self.position}+{self.added}" if self.added is not None else self.position

    def asks(self, value: Value, location: str, sampling_seed: str, run: Mapping[str, object]) -> bool:
        """Return whether a person is asked about a value. Attempts and restarted runs share one random draw.

        Args:
            value: The value.
            location: The location of the step.
            sampling_seed: See ``DecisionContext``.
            run: The facts of the run.
        """
        stable = _ATTEMPT.sub("", location)
        return asks(self.when, self.sample, value.facts(run), seed=f"{sampling_seed}:{stable}.{self.position_id}")

    def key(self, location: str, repetition: int = 0) -> str:
        """Return the key of the question, equal over resume and replay."""
        again = f"@{repetition}" if repetition else ""
        return f"{self.name or location}{again}.{self.position_id}"


def effect_of(gate: CompiledGate, decision: Decision) -> str:
    """Return the effect of a rejection; an expired deadline may have set another one than the gate's own."""
    return decision.effect or gate.on_reject


def rejection(location: str, decision: Decision) -> RunError:
    tail = f": {decision.reason}" if decision.reason else "."
    return RunError(type=REJECTED, message=f"{decision.actor} rejected {location}{tail}")


def wait_answer(request: WaitRequest, decision: Decision) -> WaitAnswer:
    """Return the answer that a decision gives to a waiting function."""
    match decision.kind:
        case DecisionKind.REJECTED:
            return WaitAnswer(question=request.digest, declined=True, reason=decision.reason or None)
        case DecisionKind.SELECTED:
            several = decision.selected_options
            value: object = list(several) if len(several) > 1 else decision.selected_option
        case _ if decision.values is not None:
            value = dict(decision.values)
        case _:
            value = decision.data if decision.data is not None else decision.content
    return WaitAnswer(question=request.digest, value=value)


def gate_of(request: WaitRequest, gates: Mapping[str, CompiledGate]) -> CompiledGate | None:
    """Return the declared human's gate with a request's options and schema; ``None`` for an unknown human."""
    declared = gates.get(request.human or DEFAULT_HUMAN)
    if declared is None:
        return None
    first = DecisionKind.SELECTED if request.options else DecisionKind.PROVIDED
    schema = dict(request.schema) if request.schema else None
    human = declared.human.model_copy(update={"answer_schema": schema, "fields": (), "options": request.options})
    return replace(declared, human=human, decisions=(first, DecisionKind.REJECTED))
