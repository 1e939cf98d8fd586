"""A question of the interpreter, put into the words that a person is asked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kneo.records.run import Run
from kneo.runtime.decide import Ask
from kneo.runtime.prompts import Message, prompt_of
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


def question(
    ask: Ask, run: Run, consequences: Mapping[str, object], messages: Callable[[], Sequence[Message]]
) -> Question:
    """Fill in who is asked what, and what they are shown; ``messages`` looks up what the steps said so far."""
    gate, human = ask.gate, ask.gate.human
    template = human.prompt or human.description
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
        prompt=ask.prompt or (prompt_of(template, ask, run, messages) if template else None),
        options=ask.options,
        attempt=ask.attempt,
        previous=ask.previous,
        consequences=consequences,
        facts=ask.facts,
        flow=_flow(ask, prompt_of(template, ask, replace(run, id=""), messages) if template else ask.prompt),
    )


def _flow(ask: Ask, prompt: str | None) -> Mapping[str, object]:
    """Return what an answer depends on beside the subject: variables and metadata decide which step comes next."""
    kept = {name: part for name, part in ask.subject.as_json().items() if name not in {"text", "review"}}
    return {"value": kept, "prompt": prompt, "options": list(ask.options or ())}
