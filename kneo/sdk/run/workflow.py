"""Events of a run, in the order they happen. What a paused run needs is in its output, not in its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

EXECUTOR_POSITION = "wait"
"""The position of a question that what runs inside a step asks in its middle."""


@dataclass(frozen=True, kw_only=True)
class WorkflowEvent:
    """Something that happened in a run."""

    event: ClassVar[str] = ""
    run_id: str
    workflow_name: str | None = None
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkflowStartedEvent(WorkflowEvent):
    event = "WorkflowStarted"


@dataclass(frozen=True, kw_only=True)
class WorkflowPausedEvent(WorkflowEvent):
    event = "WorkflowPaused"


@dataclass(frozen=True, kw_only=True)
class WorkflowCompletedEvent(WorkflowEvent):
    event = "WorkflowCompleted"
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkflowCancelledEvent(WorkflowEvent):
    event = "WorkflowCancelled"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkflowErrorEvent(WorkflowEvent):
    event = "WorkflowError"
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent(WorkflowEvent):
    """Something that happened at a primitive."""

    step_id: str = ""
    step_name: str = ""
    step_index: int = 0


@dataclass(frozen=True, kw_only=True)
class StepStartedEvent(StepEvent):
    event = "StepStarted"


@dataclass(frozen=True, kw_only=True)
class StepCompletedEvent(StepEvent):
    event = "StepCompleted"
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepErrorEvent(StepEvent):
    event = "StepError"
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Paused(StepEvent):
    message: str | None = None
    continuation_id: str = ""


@dataclass(frozen=True, kw_only=True)
class StepPausedEvent(_Paused):
    """A primitive waits for a person before it runs, between its rounds, or after it failed."""

    event = "StepPaused"


@dataclass(frozen=True, kw_only=True)
class StepOutputReviewEvent(_Paused):
    """An output waits for a person to look at it."""

    event = "StepOutputReview"


@dataclass(frozen=True, kw_only=True)
class RouterPausedEvent(_Paused):
    """A router waits for a person to choose."""

    event = "RouterPaused"
    available_choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepExecutorPausedEvent(_Paused):
    """What runs inside a step waits for a person in its middle: a tool that a person answers, a question of a function.

    ``name`` is the question's own, ``schema`` the JSON Schema of its answer.
    """

    event = "StepExecutorPaused"
    name: str = ""
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class StepContinuedEvent(StepEvent):
    event = "StepContinued"
    decision: str = ""


@dataclass(frozen=True, kw_only=True)
class RouterContinuedEvent(StepEvent):
    event = "RouterContinued"
    decision: str = ""


@dataclass(frozen=True, kw_only=True)
class StepExecutorContinuedEvent(StepEvent):
    event = "StepExecutorContinued"
    decision: str = ""
