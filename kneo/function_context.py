"""What a function of a spec receives: the context of a step or of a tool's call, and its questions to people.

The standard library alone, because the launcher of a sandbox imports it; and none of it that has work to do in each process
that a call is made in, as ``threading`` and ``random`` have.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from kneo.errors import Invalid

if TYPE_CHECKING:
    from threading import Event

# ---- tools ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """The result of a tool call. A tool may return one in place of its output."""

    name: str
    output: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """The argument of a tool's parameter ``context``.

    ``idempotency_key`` is the same whenever a call is repeated after a crash: pass it to the services that the tool calls, so
    that an effect happens once. A parameter ``key`` receives it alone.
    """

    run_id: str
    step_id: str
    agent: str
    tool: str
    idempotency_key: str


BY_NAME = ("key", "context")
"""Parameters that do not take the arguments."""


class BindsArguments:
    """A tool that converts its arguments itself. ``review`` has the gates that its spec has to declare."""

    review: Mapping[str, object]

    def bind(self, arguments: Mapping[str, object], context: ToolContext) -> dict[str, object]:
        """Return the named arguments of the function."""
        raise NotImplementedError


def parameters_of(function: Callable[..., object]) -> tuple[inspect.Parameter, ...] | None:
    """Return the parameters of a callable; ``None`` for some callables of C, which have no signature."""
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def is_async_function(function: Callable[..., object]) -> bool:
    """Return whether a call of a function, or of an object, is a coroutine."""
    called = function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(called)


def bind_arguments(
    function: Callable[..., object],
    parameters: Sequence[inspect.Parameter] | None,
    arguments: Mapping[str, object],
    context: ToolContext,
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional and the named arguments with which a tool of these parameters is called.

    Raises:
        Invalid: ``tool_signature_invalid``: the function does not take one map of arguments.
        ValueError: an argument of a ``FunctionTool`` does not fit.
    """
    if isinstance(function, BindsArguments):
        return (), function.bind(arguments, context)
    if parameters is None:
        return (dict(arguments),), {}
    named = named_arguments(parameters, context)
    others = [each for each in parameters if each.name not in BY_NAME]
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    required = [each.name for each in others if each.default is each.empty and each.kind not in variadic]
    if len(required) > 1:
        msg = (
            f"The tool {context.tool} is a function of {', '.join(required)[:200]}; a tool takes one map of arguments."
        )
        hint = "Write it as def tool(arguments): …, or decorate it with @tool of kneo.sdk.tools."
        raise Invalid(msg, code="tool_signature_invalid", hint=hint)
    if not others:
        return (), named
    first = others[0]
    if first.kind in {first.POSITIONAL_ONLY, first.VAR_POSITIONAL}:
        return (dict(arguments),), named
    if first.kind is first.VAR_KEYWORD:
        return (), {**arguments, **named}
    return (), {first.name: dict(arguments), **named}


def named_arguments(parameters: Iterable[inspect.Parameter], context: ToolContext) -> dict[str, object]:
    given = {"key": context.idempotency_key, "context": context}
    return {each.name: given[each.name] for each in parameters if each.name in given}


# ---- questions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WaitRequest:
    """A question of a function in the middle of its work. ``index`` counts the questions of one step."""

    prompt: str
    index: int
    name: str | None = None
    """The name in recorded answers, below the step's location."""
    key: str | None = None
    """The whole name, where it is not below the step's location."""
    human: str | None = None
    show: str | None = None
    """Material to read before answering."""
    schema: Mapping[str, object] | None = None
    options: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """The identity of the question: an answer counts for an equal question only."""
        # The launcher of a sandbox imports this module before packages can be found.
        from kneo.digest import digest_of_json

        schema = dict(self.schema) if self.schema is not None else None
        return digest_of_json([self.prompt, self.show, schema, list(self.options or ())])

    @property
    def subject(self) -> str:
        return self.prompt if self.show is None else f"{self.prompt}\n\n{self.show}"

    def key_at(self, location: str) -> str:
        if self.key is not None:
            return self.key
        last = self.name or ("wait" if self.index == 0 else f"wait:{self.index}")
        return f"{location}.{last}"

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_wait_request(content: object) -> WaitRequest:
    """Read the JSON of ``as_json``."""
    assert isinstance(content, Mapping)
    options = content.get("options")
    return WaitRequest(**{**content, "options": tuple(options) if options is not None else None})


@dataclass(frozen=True, kw_only=True)
class WaitAnswer:
    """A person's answer to a waiting function, or their refusal."""

    question: str
    """The digest of the question."""
    value: object = None
    declined: bool = False
    reason: str | None = None


def read_wait_answers(content: object) -> tuple[WaitAnswer, ...]:
    """Read the answers of a frame."""
    assert isinstance(content, list | tuple)
    return tuple(WaitAnswer(**answer) for answer in content)


# ---- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatMessage:
    """A text of a participant of a group chat or handoff; the task itself has no participant."""

    participant: str
    text: str


def messages_as_json(messages: Iterable[ChatMessage]) -> list[list[str]]:
    """Return messages as a part of a frame."""
    return [[each.participant, each.text] for each in messages]


def read_messages(content: object) -> tuple[ChatMessage, ...]:
    """Read the JSON of ``messages_as_json``."""
    assert isinstance(content, list | tuple)
    return tuple(ChatMessage(participant, text) for participant, text in content)


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
        self._event: Event = importlib.import_module("threading").Event()

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


class NoCancelToken(CancelToken):
    """The token of a process that a cancellation kills."""

    is_cancelled = False

    def __init__(self) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False


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
    """
    found = answers[request.index] if request.index < len(answers) else None
    if found is None or found.question != request.digest:
        raise WaitForAnswer(request)
    if found.declined:
        raise Declined(found.reason or f"No answer is given to: {request.prompt[:200]}")
    return found.value


def step_context_as_json(context: StepContext) -> dict[str, object]:
    """Return the context of a step for another process."""
    names = ("run_id", "step_id", "attempt", "idempotency_key", "previous_output", "feedback")
    return {
        **{name: getattr(context, name) for name in names},
        "values": dict(context.values),
        "outputs": dict(context.outputs),
        "messages": messages_as_json(context.messages),
        "answers": [asdict(each) for each in context.answers],
    }


def read_step_context(content: Mapping[str, object]) -> StepContext:
    """Read the JSON of ``step_context_as_json``, in the process of the call."""
    read = {"answers": read_wait_answers(content["answers"]), "messages": read_messages(content["messages"])}
    return StepContext(**{**content, **read}, token=NoCancelToken())  # type: ignore[arg-type]  # written by the function above
