"""What a step is given and what it gives back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kneo.runtime.interpreter.gate import WaitAnswer, WaitRequest
from kneo.tasks.forms import check_schema


class Cancelled(Exception):
    """The run was cancelled or taken over; whatever the step still returns is discarded."""


class WaitForAnswer(BaseException):
    """A function asks for something that nobody has given yet; it will be begun again when somebody has.

    Not an ``Exception``, so that a function that catches those does not go on without an answer.
    """

    def __init__(self, request: WaitRequest) -> None:
        super().__init__(request.prompt)
        self.request = request


class Declined(Exception):
    """Somebody was asked and gives nothing. Not caught, it is the step's error."""


class CancelToken:
    """Tells work that runs in a thread that nobody waits for it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the cancellation; say whether it came."""
        return self._event.wait(seconds)

    def raise_if_cancelled(self) -> None:
        """Stop here when nobody waits any more.

        Raises:
            Cancelled: nobody does.
        """
        if self.is_cancelled:
            raise Cancelled


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Handed to a function that has a parameter named ``context``.

    ``idempotency_key`` is the same whenever the same attempt is repeated after a crash; hand it to whatever the
    function calls, so that an effect happens once. ``previous_output`` and ``feedback`` are there when a person sent
    an earlier result back.
    """

    run_id: str
    step_id: str
    attempt: int
    idempotency_key: str
    previous_output: str | None = None
    feedback: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    """What people filled in right before this step, by field."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """What each branch said, by its id, where the step before ran several at the same time."""
    implementations: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 that the run's environment pins modules to."""
    answers: tuple[WaitAnswer, ...] = ()
    """What people gave to this step so far."""
    token: CancelToken = field(default_factory=CancelToken, compare=False)
    _asked: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

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
        """Ask a person and return what they give: a text or any JSON, what fits the schema, or one of the options.

        While nobody has answered, the run waits and nothing of it is in memory. Then the function is begun again from
        the top, with the same ``idempotency_key``, and finds the answer here; so what it does before it asks is done
        again. Ask in the same order every time: an answer to another question is asked for anew.

        Args:
            prompt: The question.
            name: What it is called in recorded answers; left out: ``wait``, and ``wait:1`` for the second one.
            human: A name in ``components.humans``: who is asked, by when, how many; left out: ``default``.
            show: What to look at before answering.
            schema: JSON Schema of the answer.
            options: What there is to choose from.
            key: The whole name in recorded answers, where that is not ``name`` below the step's place.

        Raises:
            Declined: they would not.
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


def answer_to(request: WaitRequest, answers: Sequence[WaitAnswer]) -> object:
    """Find what was given to a question.

    Raises:
        Waiting: nothing yet.
        Declined: somebody would not.
        Invalid: ``spec_invalid``: no answer could be checked against its schema.
    """
    found = answers[request.index] if request.index < len(answers) else None
    if found is None or found.question != request.digest:
        if request.schema is not None:
            check_schema(request.schema, f"The schema of the answer to {request.prompt[:200]!r}")
        raise WaitForAnswer(request)
    if found.declined:
        raise Declined(found.reason or f"Nobody gives an answer to: {request.prompt[:200]}")
    return found.value


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    text: str
    code_digest: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the trace should say about how it went; never content."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """What conditions of type ``metadata_equals`` may ask for."""
