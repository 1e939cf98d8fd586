"""Messages of a conversation, the configuration of a run, and the questions that pause it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from typing import Literal, Self, TypeAlias

from kneo.embed.database import encode_value
from kneo.errors import KneoError


@dataclass(frozen=True)
class Message:
    """One message of a conversation: the role of its author, its text, and the name of the step that wrote it."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run. It is stored with the run, so another process continues the run with the same one.

    Attributes:
        metadata: Facts for participants; JSON.
        extra: Further values for participants; JSON.
        max_iterations: The most turns of a handoff, supersteps of a graph and rounds of an agent's tool calls.
        temperature: The temperature of the workflow's agents.
        system_prompt: The instructions of the workflow's agents, instead of their own.
    """

    metadata: Mapping[str, object] = field(default_factory=dict)
    _: KW_ONLY
    extra: Mapping[str, object] = field(default_factory=dict)
    max_iterations: int | None = None
    temperature: float | None = None
    system_prompt: str | None = None

    def encode(self) -> dict[str, object]:
        """Return the configuration as JSON.

        Raises:
            Usage: ``not_json`` or ``too_large``: a value cannot be stored with the run.
        """
        encoded: dict[str, object] = json.loads(encode_value(asdict(self), "The RunConfig"))
        return encoded

    @classmethod
    def decode(cls, encoded: object) -> Self:
        """Return a configuration from its JSON; fields of other versions are left out."""
        known = {each.name for each in fields(cls)}
        values = encoded.items() if isinstance(encoded, Mapping) else ()
        return cls(**{name: value for name, value in values if name in known})


@dataclass(frozen=True)
class RunResult:
    """The result of a run, or of one participant."""

    messages: Sequence[Message]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def output_text(self) -> str:
        """The text of the last message."""
        return self.messages[-1].content if self.messages else ""


@dataclass(frozen=True)
class StreamChunk:
    """A piece of a run's output.

    Attributes:
        type: ``text`` for a piece of an agent's reply, while it arrives; ``done`` for the whole output, at the end.
        name: The step that writes the piece.
    """

    type: Literal["text", "done"]
    content: str
    name: str | None = None


Response: TypeAlias = str | Message | Sequence[Message] | RunResult
"""The types that participants and resolvers may return."""


@dataclass(frozen=True)
class HumanInterventionRequest:
    """A question to a person, with the conversation it is about."""

    step_name: str
    prompt: str
    messages: Sequence[Message]
    config: RunConfig
    metadata: Mapping[str, object] = field(default_factory=dict)


Resolver: TypeAlias = Callable[[HumanInterventionRequest], Response | Awaitable[Response | None] | None]
"""A function that answers a question during the run; ``None`` leaves the question open as a human task."""

Prompt: TypeAlias = str | Callable[[Sequence[Message], RunConfig], str | Awaitable[str]]


class HumanInterventionRequiredError(KneoError):
    """A run is paused for a person. Its state is in the database, so the process may end.

    Attributes:
        step_name: The name of the human step.
        prompt: The question.
        request: ``step_name``, ``prompt``, ``messages``, ``config`` and ``metadata``, as plain values.
        run_id: The run, for ``Workflow.resume``.
        continuation_id: The human task, for ``kneo task decide`` and HTTP.
        step_path: The path of the human step, through nested workflows.
    """

    http_status = 409
    exit_code = 5
    default_code = "human_intervention_required"

    def __init__(self, request: HumanInterventionRequest, *, run_id: str, continuation_id: str, step_path: str) -> None:
        super().__init__(f'Human input required for workflow step "{request.step_name}".')
        self.step_name = request.step_name
        self.prompt = request.prompt
        self.request = asdict(request)
        self.run_id = run_id
        self.continuation_id = continuation_id
        self.step_path = step_path


def as_messages(response: Response) -> tuple[Message, ...]:
    """Convert a response to messages; a text becomes a message of the user."""
    match response:
        case str():
            return (Message("user", response),)
        case Message():
            return (response,)
        case RunResult():
            return tuple(response.messages)
        case _:
            return tuple(response)


def as_text(response: object, author: str) -> str:
    """Convert a response to the text that the next step receives.

    Raises:
        TypeError: the response has none of the allowed types.
    """
    match response:
        case str():
            return response
        case Message():
            return response.content
        case RunResult():
            return response.output_text
        case list() | tuple() if response and all(isinstance(each, Message) for each in response):
            return "\n\n".join(each.content for each in response)
        case _:
            msg = f"{author} returned {type(response).__name__}; expected a str, Message, list of Message or RunResult."
            raise TypeError(msg)
