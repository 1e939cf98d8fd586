"""Questions that a step asks while it runs, and checkpoints: parts of a step whose results are recorded."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar, cast, overload

from pydantic import TypeAdapter

from kneo.embed.steps import POLL_SECONDS, CheckpointCall, WaitForAnswer, active_step

P = ParamSpec("P")
R = TypeVar("R")


def wait(
    *,
    schema: object = None,
    name: str | None = None,
    question: str | None = None,
    timeout: float | None = POLL_SECONDS,
    metadata: Mapping[str, object] | None = None,
) -> object:
    """Ask a person and return the answer. The run is paused until there is one; the question has no deadline.

    After the answer the step runs again from its beginning, with the same idempotency key. Ask before any effect, or
    pass that key to the effect.

    Args:
        schema: A Python type or a JSON Schema of the answer; without one, any JSON is an answer.
        name: The name of the question, by which a replay finds its answer; the default is ``wait_condition:<n>``.
        question: The text of the question.
        timeout: Seconds that the program polls for an answer; None polls without end.
        metadata: Facts shown with the question.

    Raises:
        Declined: the question was rejected.
        Usage: no step runs.
    """
    step = active_step()
    key = name or f"wait_condition:{step.count('wait_condition')}"
    step.poll_seconds = math.inf if timeout is None else timeout
    show = json.dumps(dict(metadata), ensure_ascii=False, indent=2) if metadata else None
    try:
        if schema is None or isinstance(schema, Mapping):
            return step.ask(question or key, key=key, schema=schema, show=show)
        typed: TypeAdapter[object] = TypeAdapter(cast("type", schema))
        value = step.ask(question or key, key=key, schema=typed.json_schema(), show=show)
    except WaitForAnswer as waiting:
        step.waits_for = waiting
        raise
    return typed.validate_python(value)


def wait_for_input(
    *,
    question: str,
    name: str | None = None,
    schema: object = None,
    timeout: float | None = POLL_SECONDS,
    metadata: Mapping[str, object] | None = None,
) -> object:
    """Ask a question and return the answer; see ``wait``."""
    return wait(question=question, name=name, schema=schema, timeout=timeout, metadata=metadata)


def ask_question(question: str) -> str:
    """Ask a question and return the answer as a text.

    The question is named ``ask_question:<n>:<hash>``: the same question at the same point finds the same answer, and two
    questions with the same text in one step are different questions.
    """
    number = active_step().count("ask_question")
    digest = hashlib.sha1(question.encode(), usedforsecurity=False).hexdigest()[:8]
    answer = wait_for_input(question=question, name=f"ask_question:{number}:{digest}")
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def hitl_tool(
    *, schema: object = None, question: str | None = None, timeout: float | None = POLL_SECONDS
) -> Callable[[Callable[P, object]], Callable[P, object]]:
    """Replace a function by a question to a person: the question shows the arguments, the answer is the result.

    The function itself is never called. Each call in a step is named ``<function>:<n>``.

    Args:
        schema: A Python type or a JSON Schema of the answer.
        question: The text of the question; the default is the first line of the function's docstring.
        timeout: As for ``wait``.
    """

    def decorate(function: Callable[P, object]) -> Callable[P, object]:
        tool = getattr(function, "__name__", "tool")
        prompt = question or (inspect.getdoc(function) or tool).partition("\n")[0]
        signature = inspect.signature(function)

        @functools.wraps(function)
        def ask(*args: P.args, **kwargs: P.kwargs) -> object:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            shown = {
                name: value if isinstance(value, str | int | float | None) else repr(value)
                for name, value in bound.arguments.items()
            }
            name = f"{tool}:{active_step().count(tool)}"
            return wait(schema=schema, name=name, question=prompt, timeout=timeout, metadata=shown)

        return ask

    return decorate


@overload
def checkpoint(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def checkpoint(*, name: str | None = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def checkpoint(function: Callable[..., object] | None = None, *, name: str | None = None) -> object:
    """Record the result of a function, so that a step that runs again does not call the function again.

    The result is recorded before the caller receives it. After an answer or a crash, the same call with the same
    arguments returns the recorded result; an interrupted call is repeated. Arguments and results are JSON, and a result
    is returned as decoded JSON: a tuple becomes a list. Calls are numbered: call checkpoints in the same order every time.

    Args:
        function: The function, when the decorator is used without parameters.
        name: The name of the checkpoint; the default is the name of the function.
    """

    def decorate(wrapped: Callable[..., object]) -> Callable[..., object]:
        label = name or str(getattr(wrapped, "__name__", "checkpoint"))
        if inspect.iscoroutinefunction(wrapped):

            @functools.wraps(wrapped)
            async def run_async(*args: object, **kwargs: object) -> object:
                call = CheckpointCall.of(label, args, kwargs)
                recorded = await asyncio.to_thread(call.recorded)
                if recorded:
                    return recorded[0]
                with call.running():
                    result = await wrapped(*args, **kwargs)
                return await asyncio.to_thread(call.record, result)

            return run_async

        @functools.wraps(wrapped)
        def run(*args: object, **kwargs: object) -> object:
            call = CheckpointCall.of(label, args, kwargs)
            recorded = call.recorded()
            if recorded:
                return recorded[0]
            with call.running():
                result = wrapped(*args, **kwargs)
            return call.record(result)

        return run

    return decorate(function) if function is not None else decorate
