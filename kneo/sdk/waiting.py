"""Asking a person in the middle of a step: it reads like a slow function, and the run is parked while it is not answered."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, cast

from pydantic import TypeAdapter

from kneo.errors import Usage
from kneo.runtime.steps.context import StepContext
from kneo.store.engine import Store

P = ParamSpec("P")

POLL_SECONDS = 600
"""How long the program that runs a flow stays and looks for an answer, where the question does not say."""


@dataclass
class Place:
    """The step that runs, and what it has asked so far."""

    context: StepContext
    store: Store
    asked: Counter[str] = field(default_factory=Counter)
    poll_seconds: float = POLL_SECONDS

    def count(self, what: str) -> int:
        """Say the how-manieth of its kind a question is; the first is 1."""
        self.asked[what] += 1
        return self.asked[what]


_current: ContextVar[Place] = ContextVar("place")


def begin_place(context: StepContext, store: Store) -> None:
    """Note that a step of a run in this database begins here."""
    _current.set(Place(context, store))


def current_place() -> Place:
    """Return the step that runs.

    Raises:
        Usage: none does.
    """
    place = _current.get(None)
    if place is None:
        msg = "Only a step of a running workflow or flow can wait for a person."
        raise Usage(msg, hint="Call it from a function that such a step runs.")
    return place


def wait(
    *,
    schema: object = None,
    name: str | None = None,
    question: str | None = None,
    timeout: float | None = POLL_SECONDS,
    metadata: Mapping[str, object] | None = None,
) -> object:
    """Wait for an answer, however long it takes, and return it.

    What the step did before it asked is done again when it goes on, with the same idempotency key; so ask first, or hand
    that key to whatever has effects. A question that is not answered never expires by itself.

    Args:
        schema: A Python type or a JSON Schema of the answer; left out, any JSON is one.
        name: What the answer is called, so that a replay finds it; left out: ``wait_condition:<n>``.
        question: What is asked.
        timeout: Seconds that the program itself stays and looks for an answer; None stays until there is one. Not a
            deadline.
        metadata: Facts shown beside the question.

    Raises:
        Declined: somebody would not answer.
        Usage: no step runs here.
    """
    place = current_place()
    called = name or f"wait_condition:{place.count('wait_condition')}"
    place.poll_seconds = math.inf if timeout is None else timeout
    typed: TypeAdapter[object] | None = None
    found = schema
    if schema is not None and not isinstance(schema, Mapping):
        typed = TypeAdapter(cast("type", schema))
        found = typed.json_schema()
    assert found is None or isinstance(found, Mapping)
    show = json.dumps(dict(metadata), ensure_ascii=False, indent=2) if metadata else None
    value = place.context.wait(question or called, key=called, schema=found, show=show)
    return typed.validate_python(value) if typed is not None else value


def wait_for_input(
    *, question: str, name: str | None = None, schema: object = None, timeout: float | None = POLL_SECONDS
) -> object:
    """Ask a question and return the answer; see ``wait``."""
    return wait(question=question, name=name, schema=schema, timeout=timeout)


def ask_question(question: str) -> str:
    """Ask a question and return the answer as a text.

    Its name is ``ask_question:<n>:<hash>``: the same question at the same point finds the same answer, and two of the
    same words in one step are two questions.
    """
    number = current_place().count("ask_question")
    digest = hashlib.sha1(question.encode(), usedforsecurity=False).hexdigest()[:8]
    answer = wait_for_input(question=question, name=f"ask_question:{number}:{digest}")
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def hitl_tool(
    *, schema: object = None, question: str | None = None, timeout: float | None = POLL_SECONDS
) -> Callable[[Callable[P, object]], Callable[P, object]]:
    """Make a function whose result a person gives: they see its arguments, and their answer is what it returns.

    The function itself is never run. Each call of one step is named ``<function>:<n>``.

    Args:
        schema: A Python type or a JSON Schema of the answer.
        question: What is asked; left out: the first line of the function's documentation.
        timeout: As for ``wait``.
    """

    def decorate(function: Callable[P, object]) -> Callable[P, object]:
        called = getattr(function, "__name__", "tool")
        asked = question or (inspect.getdoc(function) or called).partition("\n")[0]
        signature = inspect.signature(function)

        @wraps(function)
        def ask(*args: P.args, **kwargs: P.kwargs) -> object:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            shown = {name: value if _is_plain(value) else repr(value) for name, value in bound.arguments.items()}
            name = f"{called}:{current_place().count(called)}"
            return wait(schema=schema, name=name, question=asked, timeout=timeout, metadata=shown)

        return ask

    return decorate


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
