"""Working on the inbox: taking tasks, handing them on, answering many, and what happened to them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api import task_views
from kneo.api.context import Principal
from kneo.service import responses, task_acts
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.event_streams import task_events
from kneo.service.router import Router, responds
from kneo.service.task_stats import task_stats
from kneo.service.wire import Json
from kneo.store import task_feed, task_statistics

router = Router(tags=["human tasks"])

Reader = Annotated[Principal, Depends(require("human:read"))]
Writer = Annotated[Principal, Depends(require("human:write"))]

Decided = Literal["approved", "rejected", "edited", "selected", "provided"]


class HumanAnswer(BaseModel):
    """A decision. `request_id` says which question it answers."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    decision: Decided
    content: object = Field(default=None, description="The text; any JSON value for `provided`.")
    selected_option: str | None = None
    selected_options: list[str] | None = Field(default=None, description="Where several may be chosen, in their order.")
    values: dict[str, object] | None = Field(default=None, description="What was filled in, by field.")
    feedback: str | None = Field(default=None, description="What whoever does it again should know.")
    comment: str | None = None
    expect_digest: str | None = Field(default=None, description="The `subject_digest` that was shown.")
    statement: dict[str, object] | None = Field(
        default=None,
        description="A DSSE envelope of this answer, signed with a key of your own; `…/statement` says what.",
    )
    metadata: dict[str, object] = Field(default_factory=dict)


class BatchItem(HumanAnswer):
    """An answer, and the task it is for."""

    continuation_id: str


class Batch(BaseModel):
    """Answers to many tasks. Each is taken or refused for itself."""

    model_config = ConfigDict(extra="forbid")

    items: list[BatchItem]


class To(BaseModel):
    """Somebody to hand a task to."""

    model_config = ConfigDict(extra="forbid")

    to: str = Field(min_length=1, max_length=200, description="The name of a known person.")
    comment: str | None = None


class Until(BaseModel):
    """When to show a task again."""

    model_config = ConfigDict(extra="forbid")

    until: str = Field(description="An ISO-8601 time with a zone.")


class Remark(BaseModel):
    """Something to say about a task."""

    model_config = ConfigDict(extra="forbid")

    text: str


@router.get("/human-tasks/summary", operation_id="summarise_human_tasks", responses=responds(responses.TaskSummary))
def summarise(service: ServiceDep, _principal: Reader) -> Json:
    """Count what waits for people, by status, kind and environment."""
    with service.store.read() as tx:
        return task_views.summary(task_statistics.summary(tx))


@router.get("/human-tasks/stats", operation_id="get_human_task_stats", responses=responds(responses.TaskStats))
def get_stats(
    service: ServiceDep,
    _principal: Reader,
    since: Annotated[str, Query(max_length=20, description="Questions asked since then.", examples=["30d"])] = "30d",
    environment: str | None = None,
    workflow_name: str | None = None,
) -> Json:
    """Tell how people review, gate by gate: how fast, how often they change or refuse something, whether they agree."""
    return task_stats(service.store, since, environment, workflow_name)


@router.post("/human-tasks/batch", operation_id="resume_human_tasks", responses=responds(responses.TaskBatch))
def resume_many(body: Batch, service: ServiceDep, principal: Writer) -> Json:
    """Answer many tasks; says for each whether it was taken. Their runs go on by themselves."""
    limit = service.settings.limits.human_content_chars
    items = [item.model_dump() for item in body.items]
    pin = service.settings.trust_root
    return task_acts.decide_all(service.store, items, actor=principal.name, limit=limit, pin=pin)


@router.get(
    "/human-tasks/{continuation_id}/history",
    operation_id="get_human_task_history",
    responses=responds(responses.TaskHistory),
)
def get_history(continuation_id: str, service: ServiceDep, _principal: Reader) -> Json:
    """Tell everything that happened to a task, comments included."""
    return task_acts.history(service.store, continuation_id)


@router.post(
    "/human-tasks/{continuation_id}/claim", operation_id="claim_human_task", responses=responds(responses.HumanTask)
)
def claim(continuation_id: str, service: ServiceDep, principal: Writer) -> Json:
    """Take a task, so that nobody else works on it."""
    return task_acts.act(service.store, continuation_id, "claim", {}, actor=principal.name)


@router.post(
    "/human-tasks/{continuation_id}/unclaim", operation_id="unclaim_human_task", responses=responds(responses.HumanTask)
)
def unclaim(continuation_id: str, service: ServiceDep, principal: Writer) -> Json:
    """Give a task back."""
    return task_acts.act(service.store, continuation_id, "unclaim", {}, actor=principal.name)


@router.post(
    "/human-tasks/{continuation_id}/assign", operation_id="assign_human_task", responses=responds(responses.HumanTask)
)
def assign(continuation_id: str, body: To, service: ServiceDep, principal: Writer) -> Json:
    """Make somebody the one who is asked first."""
    return task_acts.act(service.store, continuation_id, "assign", body.model_dump(), actor=principal.name)


@router.post(
    "/human-tasks/{continuation_id}/delegate",
    operation_id="delegate_human_task",
    responses=responds(responses.HumanTask),
)
def delegate(continuation_id: str, body: To, service: ServiceDep, principal: Writer) -> Json:
    """Hand a task that is one's own to answer to somebody else who may."""
    return task_acts.act(service.store, continuation_id, "delegate", body.model_dump(), actor=principal.name)


@router.post(
    "/human-tasks/{continuation_id}/snooze", operation_id="snooze_human_task", responses=responds(responses.HumanTask)
)
def snooze(continuation_id: str, body: Until, service: ServiceDep, principal: Writer) -> Json:
    """Hide a task until a time; its deadline stays."""
    return task_acts.act(service.store, continuation_id, "snooze", body.model_dump(), actor=principal.name)


@router.post(
    "/human-tasks/{continuation_id}/comments",
    operation_id="comment_human_task",
    responses=responds(responses.HumanTask),
)
def comment(continuation_id: str, body: Remark, service: ServiceDep, principal: Writer) -> Json:
    """Say something about a task without answering it."""
    return task_acts.act(service.store, continuation_id, "comments", body.model_dump(), actor=principal.name)


@router.get(
    "/human-tasks/stream",
    operation_id="stream_human_tasks",
    response_class=Response,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    },
)
async def stream(
    service: ServiceDep,
    principal: Reader,
    last_event_id: Annotated[
        str | None,
        Header(max_length=40, description="Continue after the event with this id; `0` is before the first one."),
    ] = None,
) -> Response:
    """Follow the inbox, from now on or from after an event that was seen: each event once, in the same order for all."""
    cursor = await run_in_threadpool(task_feed.find_cursor, service.store, last_event_id)
    heartbeat = service.settings.http.stream_heartbeat_seconds
    return service.streams.answer(task_events(service.changes, cursor, heartbeat=heartbeat), principal.name)
