"""Effects of decisions that are equal at every position of a gate."""

from __future__ import annotations

import json
from dataclasses import replace

from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.gate import CompiledGate, effect_of, feedback_of, rejection
from kneo.runtime.interpreter.node import Completed, RunEnded, stopped
from kneo.runtime.interpreter.values import Value


def rejected(gate: CompiledGate, decision: Decision, value: Value, location: str) -> Completed | RunEnded:
    """Return the effect of a rejection; the rejected step does not run.

    ``value`` is the input of the step that follows where the run continues: skipped, or unchanged with ``continue``.
    Effects of a single position (retry, else) belong to the caller; here they stop the run, as does an unknown effect.
    """
    match effect_of(gate, decision):
        case "skip":
            return Completed(value=value.passed_on("skipped"))
        case "continue":
            return Completed(value=replace(value, status="completed", metadata={"decision": "rejected"}, review=None))
        case "fail":
            return RunEnded(status=RunStatus.FAILED, output=None, error=rejection(location, decision))
        case "cancel":
            return stopped(RunError(type="cancelled", message=rejection(location, decision).message))
        case _:
            return stopped(rejection(location, decision))


def forwarded(value: Value, decision: Decision) -> Value:
    """Return a value with the reviewer's words as its text: the effect of ``continue`` at a step of kind human."""
    return replace(value, text=f"Rejected by human reviewer: {feedback_of(decision)}", outputs={})


def filled_in(value: Value, decision: Decision, step_id: str) -> Value:
    """Return a value with the form values of a decision: for the next step, and as ``<step>.<field>`` for conditions."""
    if not decision.values:
        return value
    named = {f"{step_id}.{name}": _text(content) for name, content in decision.values.items()}
    return replace(value, values=dict(decision.values), variables={**value.variables, **named})


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def chosen_text(decision: Decision) -> str:
    """Return the selected options as one text."""
    return ", ".join(decision.selected_options) or decision.selected_option or ""


def edited(value: Value, decision: Decision) -> Value:
    """Return a result with the reviewer's text."""
    return replace(
        value, text=decision.content or "", metadata={**value.metadata, "decision": "edited"}, outputs={}, review=None
    )
