"""The step that runs in this process: its questions, and its checkpoints, which are recorded with its run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from kneo.digest import Digest, digest_of
from kneo.embed.database import encode_value
from kneo.errors import Usage
from kneo.function_context import StepContext, WaitForAnswer
from kneo.runtime.interpreter.node import Activity, below
from kneo.runtime.steps.functions import FunctionSchemas, StepOutput, as_text, check_output
from kneo.runtime.steps.threads import in_thread
from kneo.spec.code import INPROCESS
from kneo.store.engine import Store, Tx
from kneo.store.history import find_entry, record_entry

__all__ = [
    "INPROCESS",
    "ActiveStep",
    "Activity",
    "CheckpointCall",
    "FunctionSchemas",
    "StepContext",
    "StepOutput",
    "WaitForAnswer",
    "active_step",
    "as_text",
    "below",
    "check_output",
    "in_step",
    "in_thread",
    "is_in_step",
]

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
