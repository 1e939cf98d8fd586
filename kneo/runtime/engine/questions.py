"""A question of the interpreter, put into the words that a person is asked with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kneo.digest import digest_of, digest_of_json
from kneo.records.run import Run
from kneo.runtime.interpreter.node import Ask
from kneo.tasks.questions import Question

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


MAX_PROMPT_CHARS = 20_000
"""A subject put into a prompt may be long; the whole of it is in the task's subject."""

Message = tuple[str, str]
"""The path of a step, and what it said."""

_SLOT = re.compile(r"\{\{\s*([a-zA-Z_][a-zA-Z0-9_.#/-]{0,200})\s*\}\}")


def render(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{{ input }}`` and the like; a name nobody knows stays as it is written.

    What is filled in is not looked at again, so a value that contains braces is only text.
    """
    parts: list[str] = []
    length = done = 0
    for slot in _SLOT.finditer(template):
        value = names.get(slot[1], slot[0])
        parts += (template[done : slot.start()], value)
        length, done = length + slot.start() - done + len(value), slot.end()
        if length > MAX_PROMPT_CHARS:  # a long value in many places is not written out before it is cut off
            break
    filled = "".join([*parts, template[done:]])
    return filled if len(filled) <= MAX_PROMPT_CHARS else filled[:MAX_PROMPT_CHARS] + "...[truncated]"


def prompt_of(template: str, ask: Ask, run: Run, messages: Callable[[], Sequence[Message]]) -> str:
    """Put a question into words.

    Names: ``input``, ``output`` and ``previous.output`` (what is looked at), ``previous.status``, ``previous.rejected``
    and ``previous.feedback`` (what was sent back, and why), ``messages`` (what the steps said so far),
    ``messages.first``, ``messages.last``, ``messages.count``, ``steps.<path>.output``, ``variables.<name>``,
    ``values.<field>``, ``outputs.<step>`` (of parallel ones), ``run.id``, ``run.input``, ``run.requester``,
    ``run.environment``, ``run.workflow``, ``run.metadata.<key>`` (what the caller said), ``step.id``, and the
    question's own facts, such as ``iteration`` or ``error``.

    Args:
        template: The words.
        ask: The question.
        run: The run that asks.
        messages: Looks up what the steps said, in their order; asked only where the template wants it.
    """
    wanted = {slot[1] for slot in _SLOT.finditer(template)}
    names = _names(ask, run)
    if any(name.split(".")[0] in {"messages", "steps"} for name in wanted):
        names |= _said(messages())
    return render(template, names)


def _names(ask: Ask, run: Run) -> dict[str, str]:
    value = ask.subject
    review = value.review
    caller = run.metadata.get("caller_metadata")
    given = caller if isinstance(caller, Mapping) else {}
    return {
        "input": value.text,
        "output": value.text,
        "previous.output": value.text,
        "previous.status": value.status,
        "previous.rejected": ask.previous or (review.previous_output if review else ""),
        "previous.feedback": review.feedback if review else "",
        "run.id": run.id,
        "run.input": run.input_text,
        "run.requester": run.requester,
        "run.environment": run.environment or "",
        "run.workflow": run.workflow_name or "",
        "step.id": ask.step_id,
        **{f"run.metadata.{name}": _text(said) for name, said in given.items()},
        **{f"variables.{name}": said for name, said in value.variables.items()},
        **{f"values.{name}": _text(said) for name, said in value.values.items()},
        **{f"outputs.{name}": said for name, said in value.outputs.items()},
        **{name: _text(said) for name, said in ask.facts.items()},
        **{f"error.{name}": _text(said) for name, said in _map(ask.facts.get("error")).items()},
    }


def _said(messages: Sequence[Message]) -> dict[str, str]:
    texts = [text for _, text in messages]
    return {
        "messages": "\n".join(f"{path}: {text}" for path, text in messages),
        "messages.count": str(len(messages)),
        "messages.first": texts[0] if texts else "",
        "messages.last": texts[-1] if texts else "",
        **{f"steps.{path}.output": text for path, text in messages},
    }


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


CASE_INPUT = "case_input"
"""The key of a fork's metadata with the digest of the input that it was given in place of its parent's."""

_DATE_CHARS = len("2026-01-31")


def case_of(run: Run, *, new_input: str | None = None) -> str:
    """Name the case of a run; with ``new_input`` that of a fork of it."""
    changed = run.metadata.get(CASE_INPUT)
    if new_input is not None or not isinstance(changed, str):
        changed = input_digest(run.input_text if new_input is None else new_input)
    return name_case(run.spec_digest, run.environment, run.target, changed, run.created_at)


def name_case(spec_digest: str, environment: str | None, target: str, given: str, at: str) -> str:
    """Name the case of a run of a spec; ``given`` is the digest of its input."""
    day = at[:_DATE_CHARS]
    case = {"spec": spec_digest, "environment": environment, "target": target, "input": given, "day": day}
    return digest_of_json(case)


def input_digest(text: str) -> str:
    return digest_of(text.encode())
