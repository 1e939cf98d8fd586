"""Events of a run, in the order in which they happen. The requirements of a paused run are in its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kneo.spec.gates import positions_of

EXECUTOR_POSITIONS = positions_of("call") | {"wait"}
"""The positions of questions in the middle of a step: asked by its function or agent, or about a tool call of its agent."""


@dataclass(frozen=True, kw_only=True)
class WorkflowEvent:
    """An event of a run; ``event`` is the name of its class without ``Event``."""

    event: ClassVar[str] = ""
    run_id: str
    workflow_name: str | None = None
    at: str = ""

    def __init_subclass__(cls) -> None:
        cls.event = cls.__name__.removesuffix("Event")


class WorkflowStartedEvent(WorkflowEvent):
    """The run started."""


class WorkflowPausedEvent(WorkflowEvent):
    """The run waits for people; its output has the requirements."""


@dataclass(frozen=True, kw_only=True)
class WorkflowCompletedEvent(WorkflowEvent):
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkflowCancelledEvent(WorkflowEvent):
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkflowErrorEvent(WorkflowEvent):
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent(WorkflowEvent):
    """An event of one primitive."""

    step_id: str = ""
    step_name: str = ""
    step_index: int = 0


class StepStartedEvent(StepEvent):
    """A step started."""


@dataclass(frozen=True, kw_only=True)
class RunContentEvent(StepEvent):
    """A piece of the reply of the step's agent, while it arrives; none where a reviewer or a guardrail reads it first."""

    content: str = ""


@dataclass(frozen=True, kw_only=True)
class StepCompletedEvent(StepEvent):
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepErrorEvent(StepEvent):
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class _QuestionEvent(StepEvent):
    message: str | None = None
    continuation_id: str = ""


class StepPausedEvent(_QuestionEvent):
    """A question before a primitive runs, between the rounds of a loop, or after a failure."""


class StepOutputReviewEvent(_QuestionEvent):
    """A question about an output."""


@dataclass(frozen=True, kw_only=True)
class RouterPausedEvent(_QuestionEvent):
    """A question about the choice of a router."""

    available_choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepExecutorPausedEvent(_QuestionEvent):
    """A question that the function or a tool of a step asks while it runs.

    ``name`` is the name of the question, ``schema`` the JSON Schema of its answer.
    """

    name: str = ""
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class _DecisionEvent(StepEvent):
    decision: str = ""


class StepContinuedEvent(_DecisionEvent):
    """The answer to a question of a step."""


class RouterContinuedEvent(_DecisionEvent):
    """The choice of a router."""


class StepExecutorContinuedEvent(_DecisionEvent):
    """The answer to a question that the function of a step asked."""
