"""Python functions of steps: their context; calls with checked input, checked output and bounded size."""

from __future__ import annotations

import inspect
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass

from kneo.errors import Invalid
from kneo.runtime.interpreter.gate import WaitAnswer, WaitRequest
from kneo.runtime.interpreter.values import ChatMessage
from kneo.runtime.steps.code import Code
from kneo.spec.json_schema import Schema, SchemaInvalid, Uncheckable, compile_schema
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


# ---- calls of functions -----------------------------------------------------------------------------------------

MAX_OUTPUT_CHARS = 1_000_000
"""Characters that a function may return: the output is stored with later steps."""


@dataclass(frozen=True, kw_only=True)
class FunctionSchemas:
    """The JSON Schemas of a function's input and output, where the spec declares them."""

    takes: Schema | None = None
    returns: Schema | None = None


def is_async(code: Code) -> bool:
    return inspect.iscoroutinefunction(code.function)


def call(code: Code, text: str, context: StepContext, signature: FunctionSchemas) -> str:
    """Call a plain function and return its result as text.

    Raises:
        Invalid: ``function_input_invalid``, ``function_output_invalid`` or ``output_too_large``.
    """
    return as_text(call_for_value(code, text, context, signature), signature)


def call_for_value(code: Code, text: str, context: StepContext, signature: FunctionSchemas) -> object:
    """Call a function with a text, and return what it returns; a coroutine is returned as it is.

    Raises:
        Invalid: ``function_input_invalid``.
    """
    check_input(text, signature)
    takes_context = "context" in inspect.signature(code.function).parameters
    return code.function(text, context=context) if takes_context else code.function(text)


def check_value(result: object, signature: FunctionSchemas) -> object:
    """Check what a function returned to an agent, and return it as a JSON value.

    Raises:
        Invalid: ``function_output_invalid`` or ``output_too_large``.
    """
    value = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    if signature.returns is not None:
        _check(value, signature.returns, "result", "function_output_invalid")
    found: object = json.loads(check_output(_json_text(value)))
    return found


def check_input(text: str, signature: FunctionSchemas) -> None:
    """Check a function's input; a schema of another type than string is checked against the text read as JSON.

    Raises:
        Invalid: ``function_input_invalid``.
    """
    if signature.takes is not None:
        _check(_json_value(text, signature.takes), signature.takes, "input", "function_input_invalid")


def as_text(result: object, signature: FunctionSchemas) -> str:
    """Check a function's result and return it as text.

    Raises:
        Invalid: ``function_output_invalid`` or ``output_too_large``.
    """
    if signature.returns is not None:
        seen = _json_value(result, signature.returns) if isinstance(result, str) else result
        _check(seen, signature.returns, "result", "function_output_invalid")
    return check_output(_json_text(result) if isinstance(result, dict | list | tuple) else str(result))


def check_output(output: str) -> str:
    """Check the length of what a function returned.

    Raises:
        Invalid: ``output_too_large``.
    """
    if len(output) > MAX_OUTPUT_CHARS:
        msg = f"The function returned {len(output):,} characters; at most {MAX_OUTPUT_CHARS:,} are kept."
        raise Invalid(msg, code="output_too_large", hint="Store large content elsewhere, and return where it is.")
    return output


def _json_text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The function's result cannot be written as JSON: {error}"
        raise Invalid(
            msg, code="function_output_invalid", hint="Return a text, or values that JSON can represent."
        ) from error


def _json_value(text: str, schema: Schema) -> object:
    if schema.get("type") == "string":
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def _check(value: object, schema: Schema, what: str, code: str) -> None:
    try:
        errors = compile_schema(schema).errors(value, limit=1)
    except SchemaInvalid as error:
        msg = f"The function's {what} cannot be checked, because its schema cannot be used. {error}"
        raise Invalid(msg, code=code) from error
    except Uncheckable as error:
        msg = f"The function's {what} cannot be checked against its schema: {error}."
        raise Invalid(msg, code=code) from error
    for wrong in errors:
        msg = f"The function's {what} does not fit its schema at {wrong.json_path}: {wrong.message[:300]}"
        raise Invalid(msg, code=code)
