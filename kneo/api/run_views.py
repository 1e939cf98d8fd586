"""Views of runs, their traces and checkpoints.

Texts of a run leave without secrets. Texts that people review keep names and addresses; metadata, traces and checkpoints leave
without those too. Stored data stays whole, because the next step works on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from kneo.api.operation import Json
from kneo.api.page import PageView, SearchPeriod, view_of
from kneo.api.task_views import epoch, human_request, votes_of
from kneo.records.run import AgentUsage, Checkpoint, Run, RunError, RunStatus, TraceEvent
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.redaction import hide_paths, redact, redact_text
from kneo.runtime.engine.views import RunPosition
from kneo.runtime.engine.wait import SettledRun


def _translate(word: object, info: ValidationInfo) -> object:
    return info.context(word) if info.context is not None and isinstance(word, str) else word


StatusWord = Annotated[
    RunStatus,
    BeforeValidator(_translate),
    WithJsonSchema({"type": "string", "examples": ["succeeded"]}),
]
"""The status of a run in a view. A reader of another vocabulary passes its translation as the context of validation."""


@dataclass(frozen=True, kw_only=True)
class RunErrorView:
    """The error of a run or a step."""

    type: str
    message: str

    @classmethod
    def of(cls, error: RunError | None) -> RunErrorView | None:
        """Return an error without secrets and paths of the machine."""
        return cls(type=error.type, message=hide_paths(redact_text(error.message))) if error is not None else None


@dataclass(frozen=True, kw_only=True)
class UsageView:
    """The usage of models and tools."""

    requests: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_micros: Annotated[
        int | None,
        Field(
            description="Millionths of a US dollar, of the requests whose model has a price; null where none has one."
        ),
    ]
    unpriced_requests: int

    @classmethod
    def of(cls, usage: AgentUsage) -> UsageView:
        return cls(**vars(usage) | {"total_tokens": usage.total_tokens, "cost_micros": usage.known_cost})


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run."""

    id: str
    run_id: str
    status: StatusWord
    agent_name: str | None
    workflow_name: str | None
    workflow_kind: str | None
    input_text: str
    output_text: str | None
    current_step_index: Annotated[
        int | None, Field(description="Of a sequential workflow, counted from 0; null for others.")
    ]
    current_step_id: str | None
    current_node_id: str | None
    visited_steps: list[str]
    visited_nodes: list[str]
    pending_human_request: Json | None
    continuation_id: str | None
    trace_event_count: int
    trace_dropped: int = 0
    session_id: str | None
    usage: UsageView | None
    metadata: Json
    error: RunErrorView | None
    created_at: str
    updated_at: str
    started_at: str | None
    completed_at: str | None
    deadline_at: Annotated[float | None, Field(description="Seconds since 1970.")]

    @classmethod
    def of(cls, run: Run, task: HumanTask | None) -> RunView:
        """Build the view of a run and of its first open task."""
        session_id = run.metadata.get("session_id")
        request = request_for_callers(task) if task else None
        return view_of(
            cls,
            run,
            run_id=run.id,
            workflow_kind=run.workflow_kind,
            input_text=redact_text(run.input_text, personal=False),
            output_text=readable(run.output_text),
            **vars(RunPosition.of(run, task)),
            pending_human_request=request,
            continuation_id=task.id if task else None,
            trace_event_count=run.trace_count,
            session_id=str(session_id) if session_id is not None else None,
            usage=_usage(run),
            metadata=run_metadata(run, task, request),
            error=RunErrorView.of(run.error),
            deadline_at=epoch(run.deadline_at),
        )


@dataclass(frozen=True, kw_only=True)
class RunPageView(PageView):
    """One page of runs."""

    runs: list[RunView]
    next_after: Annotated[str | None, Field(description="Where the next page begins, in an order that keeps.")]
    searched: Annotated[SearchPeriod | None, Field(description="The period of a text search; null without q.")] = None


def run_metadata(run: Run, task: HumanTask | None, request: Json | None) -> Json:
    """Return the metadata of a run for a caller, with the first open task and its request."""
    values = clean(run.metadata)
    values["requester"] = run.requester
    values["spec_digest"] = run.spec_digest
    values["workflow_kind"] = run.workflow_kind
    values["trace_event_count"] = run.trace_count
    usage = _usage(run)
    if usage is not None:
        values["usage"] = vars(usage)
    if run.workflow_type is not None:
        values["workflow"] = {
            "name": run.workflow_name,
            "type": run.workflow_type,
            "visited_steps": list(run.visited_steps),
        }
        values["workflow_type"] = run.workflow_type
    if task is not None:
        values |= {
            "human_intervention_required": True,
            "continuation_id": task.id,
            "pending_human_request": request,
            "request": request,
            "pending_step_id": task.step_id,
        }
    return values


def _usage(run: Run) -> UsageView | None:
    """Return the usage of a run; ``None`` for one that has used no model and no tool."""
    return UsageView.of(run.usage) if run.usage != AgentUsage() else None


def request_for_callers(task: HumanTask) -> Json:
    """Return the request of a task without secrets."""
    request = redact(human_request(task), personal=False)
    assert isinstance(request, dict)
    return request


def clean(values: Mapping[str, object]) -> Json:
    """Return data without secrets and personal data."""
    cleaned = redact(values)
    assert isinstance(cleaned, dict)
    return cleaned


def readable(text: str | None) -> str | None:
    """Return a text for review: without secrets, with names and addresses."""
    return redact_text(text, personal=False) if text is not None else None


_TRACE_FIELDS = ("agent_name", "model_provider", "model_name", "tool_name", "input_preview", "output_preview", "error")
"""Data of a trace event that its view repeats at the top level."""

_FACTS = {"agent": "agent_name", "provider": "model_provider", "model": "model_name", "tool": "tool_name"}
"""Facts of requests and tool calls, and their names in the view of an event."""


@dataclass(frozen=True, kw_only=True)
class TraceEventView:
    """An event in the trace of a run."""

    type: str
    run_id: str
    event_id: str
    sequence: int
    timestamp: str
    step_id: str | None
    agent_name: str | None = None
    model_provider: str | None = None
    model_name: str | None = None
    tool_name: str | None = None
    input_preview: str | None = None
    output_preview: str | None = None
    error: Json | None = None
    metadata: Json

    @classmethod
    def of(cls, event: TraceEvent) -> TraceEventView:
        """Build the view of an event."""
        data = {_FACTS.get(name, name): value for name, value in clean(event.data).items()}
        top = {name: data.pop(name) for name in _TRACE_FIELDS if name in data}
        return view_of(
            cls,
            event,
            metadata=data,
            **top,
        )


@dataclass(frozen=True, kw_only=True)
class TraceView(PageView):
    """One page of a trace."""

    run_id: str
    events: list[TraceEventView]
    dropped: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointView:
    """A checkpoint of a run."""

    id: str
    run_id: str
    sequence: int
    type: str
    step_id: str | None
    node_id: str | None = None
    state: Json
    metadata: Json
    created_at: str

    @classmethod
    def of(cls, item: Checkpoint) -> CheckpointView:
        """Build the view of a checkpoint."""
        return view_of(
            cls,
            item,
            state=clean(item.state),
            metadata=clean(item.metadata),
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointPageView(PageView):
    """One page of checkpoints."""

    run_id: str
    checkpoints: list[CheckpointView]


@dataclass(frozen=True, kw_only=True)
class RunStartedView:
    """The state of a run after its start or continuation."""

    run_id: str
    status: StatusWord
    output_text: str | None
    human_intervention_required: bool
    continuation_id: str | None
    metadata: Json
    error: RunErrorView | None

    @classmethod
    def of(cls, settled: SettledRun) -> RunStartedView:
        """Build the view of a run and of the first question that it asks."""
        run, task = settled.run, settled.task
        return cls(
            run_id=run.id,
            status=run.status,
            output_text=readable(run.output_text),
            human_intervention_required=task is not None,
            continuation_id=task.id if task else None,
            metadata=run_metadata(run, task, request_for_callers(task) if task else None),
            error=RunErrorView.of(run.error),
        )


@dataclass(frozen=True, kw_only=True)
class RunResumedView(RunStartedView):
    """The state of a run after an answer. A vote below the quorum shows the votes."""

    quorum: Json | None = None
    votes: list[Json] | None = None

    @classmethod
    def after(cls, answered: HumanTask, settled: SettledRun) -> RunResumedView:
        """Build the view of a run after an answer to one of its tasks."""
        started = RunStartedView.of(settled)
        votes = dict(votes_of(answered)) if answered.status in UNRESOLVED else {}
        metadata = {**started.metadata, "resumed_from_continuation_id": answered.id}
        return cls(**{**vars(started), "metadata": metadata, **votes})
