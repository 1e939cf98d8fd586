"""The context and the output of a step."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kneo.runtime.interpreter.gate import WaitAnswer, WaitRequest
from kneo.runtime.interpreter.values import ChatMessage
from kneo.tasks.forms import check_schema


class Cancelled(Exception):
    """The run was cancelled or taken over; the step's result is discarded."""


class WaitForAnswer(BaseException):
    """A function waits for an answer; it begins again when the answer is recorded.

    Not an ``Exception``: a function that catches those must not continue without an answer.
    """

    def __init__(self, request: WaitRequest) -> None:
        super().__init__(request.prompt)
        self.request = request


class Declined(Exception):
    """A person declined to answer. Not caught, it is the step's error."""


class CancelToken:
    """The cancellation signal for work in a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep until the cancellation at most; return whether it came."""
        return self._event.wait(seconds)

    def raise_if_cancelled(self) -> None:
        """Stop here after a cancellation.

        Raises:
            Cancelled: the step was cancelled.
        """
        if self.is_cancelled:
            raise Cancelled


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The argument of a function's parameter ``context``.

    ``idempotency_key`` is the same whenever the same attempt is repeated after a crash: pass it to the services that the
    function calls, so that an effect happens once. ``previous_output`` and ``feedback`` are set when a reviewer sent an
    earlier result back.
    """

    run_id: str
    step_id: str
    attempt: int
    idempotency_key: str
    previous_output: str | None = None
    feedback: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    """Form values of a person right before this step, by field."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Outputs of the parallel branches before this step, by their ids."""
    messages: tuple[ChatMessage, ...] = ()
    """The messages before this turn of a group chat; in a handoff, the participant's own earlier ones."""
    implementations: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of modules that the run's environment pins."""
    answers: tuple[WaitAnswer, ...] = ()
    """Answers to the earlier questions of this step."""
    token: CancelToken = field(default_factory=CancelToken, compare=False)
    _asked: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def location(self) -> str:
        """The location of the step in its run: its path, with the rounds of loops."""
        return self.idempotency_key.partition(":")[2].rpartition(":")[0]

    def wait(
        self,
        prompt: str,
        *,
        name: str | None = None,
        human: str | None = None,
        show: str | None = None,
        schema: Mapping[str, object] | None = None,
        options: Sequence[str] | None = None,
        key: str | None = None,
    ) -> object:
        """Ask a person and return the answer: a text or any JSON, a value that fits the schema, or one of the options.

        Until the answer is recorded, the run waits and holds no memory. Then the function begins again from the top, with
        the same ``idempotency_key``, and this call returns the answer; work before the call is repeated. Ask in the same
        order every time: an answer to another question is not used.

        Args:
            prompt: The question.
            name: The name in recorded answers; default: ``wait``, and ``wait:1`` for the second question.
            human: A name in ``components.humans`` with the people, deadline and quorum; default: ``default``.
            show: Material to read before answering.
            schema: JSON Schema of the answer.
            options: The choices.
            key: The whole name in recorded answers, instead of ``name`` below the step's location.

        Raises:
            Declined: the person declined.
        """
        request = WaitRequest(
            prompt=prompt,
            index=next(self._asked),
            name=name,
            key=key,
            human=human,
            show=show,
            schema=schema,
            options=tuple(options) if options is not None else None,
        )
        return answer_to(request, self.answers)

    def skip_questions(self, number: int) -> None:
        """Leave out the answers to questions of a part whose result is recorded, so that it does not ask them again."""
        for _ in range(number):
            next(self._asked)


def answer_to(request: WaitRequest, answers: Sequence[WaitAnswer]) -> object:
    """Return the answer to a request.

    Raises:
        WaitForAnswer: there is no answer yet.
        Declined: the person declined.
        Invalid: ``spec_invalid``: the request's schema cannot be used.
    """
    found = answers[request.index] if request.index < len(answers) else None
    if found is None or found.question != request.digest:
        if request.schema is not None:
            check_schema(request.schema, f"The schema of the answer to {request.prompt[:200]!r}")
        raise WaitForAnswer(request)
    if found.declined:
        raise Declined(found.reason or f"No answer is given to: {request.prompt[:200]}")
    return found.value


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    text: str
    code_digest: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """Facts for the trace, such as the model; never content."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Values for conditions of type ``metadata_equals``."""
    input_text: str | None = None
    """The input as the guardrails of the step's agent passed it on; ``None`` of a function, whose input nothing checks."""
