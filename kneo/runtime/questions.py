"""A question of the interpreter, put into the words that a person is asked with."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.runtime.decide import Ask
from kneo.runtime.prompts import render
from kneo.state.run import Run
from kneo.tasks.opening import Question

KINDS = {
    "step": "approval",
    "before": "approval",
    "after": "review",
    "each": "review",
    "route": "selection",
    "error": "error",
    "wait": "freeform",
}
"""What a task is called where its human does not say it."""


def question(ask: Ask, run: Run, consequences: Mapping[str, object]) -> Question:
    """Fill in who is asked what, and what they are shown."""
    gate, human = ask.gate, ask.gate.human
    template = human.prompt or human.description
    names = {
        "input": ask.subject.text,
        "output": ask.subject.text,
        "previous.output": ask.subject.text,
        "run.id": run.id,
        "run.input": run.input_text,
        "run.requester": run.requester,
        "step.id": ask.step_id,
        **{name: str(value) for name, value in ask.facts.items() if isinstance(value, str | int)},
        **{f"variables.{name}": value for name, value in ask.subject.variables.items()},
    }
    return Question(
        key=ask.key,
        path=ask.path,
        step_id=ask.step_id,
        position=gate.position,
        human=human,
        subject=ask.subject.text,
        decisions=gate.decisions,
        on_reject=gate.on_reject,
        kind=KINDS[gate.position],
        prompt=ask.prompt or (render(template, names) if template else None),
        options=ask.options,
        attempt=ask.attempt,
        previous=ask.previous,
        consequences=consequences,
        facts=ask.facts,
    )
