"""Effects of a rejection that are the same wherever it was said."""

from __future__ import annotations

import json
from dataclasses import replace

from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.gate import CompiledGate, effect_of, feedback_of, rejection
from kneo.runtime.interpreter.node import Completed, RunEnded, stopped
from kneo.runtime.interpreter.values import Value


def rejected(gate: CompiledGate, decision: Decision, value: Value, place: str) -> Completed | RunEnded:
    """End the run or go past what was rejected; what that is never runs.

    ``value`` is what flows on where the run does: skipped, or as it is with ``continue``. Effects that mean something only at one position (retry, else)
    are its caller's; one that gets here stops the run, as does any word nobody knows.
    """
    match effect_of(gate, decision):
        case "skip":
            return Completed(value=value.passed_on("skipped"))
        case "continue":
            return Completed(value=replace(value, status="completed", metadata={"decision": "rejected"}, review=None))
        case "fail":
            return RunEnded(status=RunStatus.FAILED, output=None, error=rejection(place, decision))
        case "cancel":
            error = RunError(type="cancelled", message=rejection(place, decision).message)
            return stopped(error)
        case _:
            return stopped(rejection(place, decision))


def forwarded(value: Value, decision: Decision) -> Value:
    """Put the words of a rejection in the place of a value: what ``continue`` hands on at a step of kind human."""
    return replace(value, text=f"Rejected by human reviewer: {feedback_of(decision)}")


def filled_in(value: Value, decision: Decision, step_id: str) -> Value:
    """Hand on what a person filled in: to the next step as it is, and to conditions as ``<step>.<field>``."""
    if not decision.values:
        return value
    named = {f"{step_id}.{name}": _text(content) for name, content in decision.values.items()}
    return replace(value, values=dict(decision.values), variables={**value.variables, **named})


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def chosen_text(decision: Decision) -> str:
    """Spell what was chosen as one text."""
    return ", ".join(decision.selected_options) or decision.selected_option or ""


def edited(value: Value, decision: Decision) -> Value:
    """Put a person's words in the place of a result; they flow on like the result would have."""
    return replace(value, text=decision.content or "", metadata={**value.metadata, "decision": "edited"}, review=None)
