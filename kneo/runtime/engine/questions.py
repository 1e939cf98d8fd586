"""Questions of the interpreter as tasks for people: their prompts, and the seed of their sampling."""

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
    "tool": "approval",
    "external": "freeform",
}
"""The kind of a task, where its human does not declare one."""


def question(
    ask: Ask, run: Run, consequences: Mapping[str, object], messages: Callable[[], Sequence[Message]]
) -> Question:
    """Return the task of a question; ``messages`` looks up the outputs of the steps."""
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
    """Return the values, besides the subject, that an answer depends on: variables and metadata decide the next step."""
    kept = {name: part for name, part in ask.subject.as_json().items() if name not in {"text", "review"}}
    return {"value": kept, "prompt": prompt, "options": list(ask.options or ())}


MAX_PROMPT_CHARS = 20_000
"""Longest prompt; the task's subject has the whole text."""

Message = tuple[str, str]
"""The path of a step, and its output."""

_SLOT = re.compile(r"\{\{\s*([a-zA-Z_][a-zA-Z0-9_.#/-]{0,200})\s*\}\}")


def render(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{{ input }}`` and the other names; unknown names stay unchanged.

    Values are not searched for names: braces in a value are only text.
    """
    parts: list[str] = []
    length = done = 0
    for slot in _SLOT.finditer(template):
        value = names.get(slot[1], slot[0])
        parts += (template[done : slot.start()], value)
        length, done = length + slot.start() - done + len(value), slot.end()
        if length > MAX_PROMPT_CHARS:  # a long value in many places must not be written out before it is truncated
            break
    filled = "".join([*parts, template[done:]])
    return filled if len(filled) <= MAX_PROMPT_CHARS else filled[:MAX_PROMPT_CHARS] + "...[truncated]"


def prompt_of(template: str, ask: Ask, run: Run, messages: Callable[[], Sequence[Message]]) -> str:
    """Return the prompt of a question.

    Names: ``input``, ``output`` and ``previous.output`` (the subject), ``previous.status``, ``previous.rejected``
    and ``previous.feedback`` (the rejected result and its feedback), ``messages`` (the outputs of the steps),
    ``messages.first``, ``messages.last``, ``messages.count``, ``steps.<path>.output``, ``variables.<name>``,
    ``values.<field>``, ``outputs.<step>`` (of parallel ones), ``run.id``, ``run.input``, ``run.requester``,
    ``run.environment``, ``run.workflow``, ``run.metadata.<key>`` (the caller's metadata), ``step.id``, and the
    question's own facts, such as ``iteration`` or ``error``.

    Args:
        template: The template.
        ask: The question.
        run: The run.
        messages: Looks up the outputs of the steps in their order; called only where the template needs them.
    """
    wanted = {slot[1] for slot in _SLOT.finditer(template)}
    names = _names(ask, run)
    if any(name.split(".")[0] in {"messages", "steps"} for name in wanted):
        names |= _step_outputs(messages())
    return render(template, names)


def _names(ask: Ask, run: Run) -> dict[str, str]:
    value = ask.subject
    review = value.review
    caller = run.metadata.get("caller_metadata")
    metadata = caller if isinstance(caller, Mapping) else {}
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
        **{f"run.metadata.{name}": _text(content) for name, content in metadata.items()},
        **{f"variables.{name}": content for name, content in value.variables.items()},
        **{f"values.{name}": _text(content) for name, content in value.values.items()},
        **{f"outputs.{name}": content for name, content in value.outputs.items()},
        **{name: _text(content) for name, content in ask.facts.items()},
        **{f"error.{name}": _text(content) for name, content in _map(ask.facts.get("error")).items()},
    }


def _step_outputs(messages: Sequence[Message]) -> dict[str, str]:
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


SAMPLING_INPUT = "case_input"
"""The key of a fork's metadata with the digest of its changed input."""

_DATE_CHARS = len("2026-01-31")


def sampling_seed_of(run: Run, *, new_input: str | None = None) -> str:
    """Return the sampling seed of a run; with ``new_input`` that of its fork.

    The seed consists of values that a restarted run shares: the exact spec, environment, target, input and day. A requester
    cannot avoid a review by starting the run again; a daily run with the same input is sampled like any other.
    """
    changed = run.metadata.get(SAMPLING_INPUT)
    if new_input is not None or not isinstance(changed, str):
        changed = input_digest(run.input_text if new_input is None else new_input)
    return sampling_seed(run.spec_digest, run.environment, run.target, changed, run.created_at)


def sampling_seed(spec_digest: str, environment: str | None, target: str, input_hash: str, at: str) -> str:
    """Return the sampling seed of a run of a spec."""
    day = at[:_DATE_CHARS]
    case = {"spec": spec_digest, "environment": environment, "target": target, "input": input_hash, "day": day}
    return digest_of_json(case)


def input_digest(text: str) -> str:
    return digest_of(text.encode())
