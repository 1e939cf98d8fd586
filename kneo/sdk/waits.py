"""Questions that a step asks while it runs, and checkpoints: parts of a step whose results are recorded."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast, overload

from pydantic import TypeAdapter

from kneo.digest import Digest, digest_of
from kneo.errors import Usage
from kneo.runtime.steps.functions import StepContext, WaitForAnswer
from kneo.sdk.db import encode_value
from kneo.store.engine import Store, Tx
from kneo.store.history import find_entry, record_entry

P = ParamSpec("P")
R = TypeVar("R")

POLL_SECONDS = 600
"""How long the program that runs a flow polls for an answer, unless the question sets a timeout."""

QUESTIONS = "?"
"""The kind of every question, in the counts of a step."""

_parts: ContextVar[tuple[Counter[str], ...]] = ContextVar("parts", default=())
"""What the checkpoints around this point have counted so far, the outermost first."""


@dataclass(eq=False)
class ActiveStep:
    """The step that runs in this context, with the number of its questions by kind.

    Attributes:
        waits_for: The open question that a thread of the step met; the thread ends, and so does the step.
    """

    context: StepContext
    store: Store
    counts: Counter[str] = field(default_factory=Counter)
    poll_seconds: float = POLL_SECONDS
    waits_for: WaitForAnswer | None = None
    earlier: frozenset[threading.Thread] = field(default_factory=lambda: frozenset(threading.enumerate()))
    """Threads that ran before the step began, and so belong to something else."""

    def count(self, kind: str) -> int:
        """Return the number of the next question of a kind; the first is 1."""
        self._add({kind: 1})
        return self.counts[kind]

    def ask(self, question: str, **options: Any) -> object:  # noqa: ANN401 - as the context takes them
        """Ask a question; see ``StepContext.wait``."""
        self._add({QUESTIONS: 1})
        return self.context.wait(question, **options)

    def skip(self, counts: Mapping[str, int]) -> None:
        """Count what a recorded part counted when it ran."""
        self._add(counts)
        self.context.skip_questions(counts.get(QUESTIONS, 0))

    def _add(self, counts: Mapping[str, int]) -> None:
        for around in (self.counts, *_parts.get()):
            around.update(counts)


_active_step: ContextVar[ActiveStep] = ContextVar("active_step")


_running: set[ActiveStep] = set()
"""The steps that run in this process, for questions from threads that a step started itself."""


@contextmanager
def in_step(context: StepContext, store: Store) -> Iterator[ActiveStep]:
    """Set the step that runs in this context, until the block ends."""
    step = ActiveStep(context, store)
    token = _active_step.set(step)
    _running.add(step)
    try:
        yield step
    finally:
        _running.discard(step)
        _active_step.reset(token)


def is_in_step() -> bool:
    """Return whether a step runs in this context."""
    return _active_step.get(None) is not None


def active_step() -> ActiveStep:
    """Return the step that runs in this context; in a thread that began without a context, the only step that it can be of.

    Raises:
        Usage: no step runs, or a thread without a context may belong to several steps.
    """
    step = _active_step.get(None)
    if step is not None:
        return step
    running = [each for each in tuple(_running) if threading.current_thread() not in each.earlier]
    if len(running) == 1:
        return running[0]
    msg = "Only a step of a running workflow or flow can wait for a person."
    hint = "Call this function from a function that a step runs."
    if running:
        msg = f"This thread may belong to any of {len(running)} running steps."
        hint = "Start the thread with contextvars.copy_context().run, or use asyncio.to_thread."
    raise Usage(msg, hint=hint)


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


INSIDE = "~"
"""Ends the name of the entry that keeps what a checkpoint counted; no result."""


@dataclass(frozen=True)
class CheckpointCall:
    """One call of a checkpoint in a step: its name with its number, and the digest of its arguments."""

    step: ActiveStep
    name: str
    input_digest: Digest
    counts: Counter[str] = field(default_factory=Counter)
    """Questions and checkpoints inside this call: a recorded call counts them without asking."""

    @classmethod
    def of(cls, name: str, args: object, kwargs: object) -> CheckpointCall:
        step = active_step()
        text = encode_value({"args": args, "kwargs": kwargs}, f"The arguments of {name}", sort_keys=True)
        return cls(step, f"{name}:{step.count(f'checkpoint {name}')}", digest_of(text.encode()))

    def recorded(self) -> tuple[object] | None:
        """Return the recorded result; None without one, or when the arguments differ."""
        context = self.step.context
        with self.step.store.read() as tx:
            entry = find_entry(tx, context.run_id, context.location, self.name)
            inside = find_entry(tx, context.run_id, context.location, f"{self.name}{INSIDE}")
        if entry is None or entry.input_digest != self.input_digest:
            return None
        if inside is not None:
            self.step.skip(json.loads(inside.value))
        return (json.loads(entry.value),)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what the call asks and records inside a block."""
        token = _parts.set((*_parts.get(), self.counts))
        try:
            yield
        finally:
            _parts.reset(token)

    def record(self, result: object) -> object:
        """Record a result; return it as a later call reads it."""
        value = encode_value(result, f"The result of {self.name}", sort_keys=True)
        context = self.step.context
        context.token.raise_if_cancelled()
        inside = json.dumps(self.counts)

        def write(tx: Tx) -> None:
            at = (tx, context.run_id, context.location)
            if self.counts:
                record_entry(*at, f"{self.name}{INSIDE}", input_digest=self.input_digest, value=inside)
            record_entry(*at, self.name, input_digest=self.input_digest, value=value)

        self.step.store.transact(write)
        return json.loads(value)


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
