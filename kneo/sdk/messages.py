"""What participants of a workflow hear and say, and how they ask people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from kneo.errors import KneoError


@dataclass(frozen=True)
class Message:
    """Something that was said: by whom (``role``; ``name`` is the step), and what."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """What a run is told beside its messages; handed to every participant as it is."""

    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """What came of a run, or of one participant."""

    messages: Sequence[Message]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def output_text(self) -> str:
        """The last thing that was said."""
        return self.messages[-1].content if self.messages else ""


Said: TypeAlias = str | Message | Sequence[Message] | RunResult
"""What participants and resolvers may answer with."""


@dataclass(frozen=True)
class HumanInterventionRequest:
    """A question to a person, with everything they may want to see."""

    step_name: str
    prompt: str
    messages: Sequence[Message]
    config: RunConfig
    metadata: Mapping[str, object] = field(default_factory=dict)


Resolver: TypeAlias = Callable[[HumanInterventionRequest], Said | Awaitable[Said | None] | None]
"""Answers inside the run; ``None`` leaves the question open for somebody else."""

Prompt: TypeAlias = str | Callable[[Sequence[Message], RunConfig], str | Awaitable[str]]


class HumanInterventionRequiredError(KneoError):
    """A run waits for a person. It is parked in its database: nothing is lost when this process ends.

    Attributes:
        step_name: The step that asks.
        prompt: The question.
        request: ``step_name``, ``prompt``, ``messages``, ``config`` and ``metadata``, as plain values.
        run_id: The run, for ``Workflow.resume``.
        continuation_id: The human task, for ``kneo human resume`` and HTTP.
        step_path: Where the step stands, workflows inside workflows included.
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


def as_messages(given: Said) -> tuple[Message, ...]:
    """Read what somebody hands over as messages; a text is the user's."""
    match given:
        case str():
            return (Message("user", given),)
        case Message():
            return (given,)
        case RunResult():
            return tuple(given.messages)
        case _:
            return tuple(given)


def as_text(said: object, who: str) -> str:
    """Turn what a participant said into the text that flows on.

    Raises:
        TypeError: it is none of the things a participant may say.
    """
    match said:
        case str():
            return said
        case Message():
            return said.content
        case RunResult():
            return said.output_text
        case list() | tuple() if said and all(isinstance(each, Message) for each in said):
            return "\n\n".join(each.content for each in said)
        case _:
            msg = f"{who} returned {type(said).__name__}; it may return a str, Message, list of Message or RunResult."
            raise TypeError(msg)
