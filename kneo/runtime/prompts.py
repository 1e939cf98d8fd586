"""The words of a question: a template with a few names to fill in, and nothing else it could do. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from kneo.records.run import Run
from kneo.runtime.decide import Ask

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
