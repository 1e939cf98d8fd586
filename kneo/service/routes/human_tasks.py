"""The inbox: what people are asked, and their answers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from kneo.errors import Invalid
from kneo.runtime.wait import wait_until_settled
from kneo.service import answers, wire
from kneo.service.auth import Principal, require
from kneo.service.context import Here, Published
from kneo.service.router import Router, shows
from kneo.service.routes.runs import SYNC_SECONDS, open_task
from kneo.service.wire import Json
from kneo.state.task import UNRESOLVED, DecisionKind, TaskStatus
from kneo.store import tasks
from kneo.tasks.answers import Answer
from kneo.tasks.inbox import decide, find

router = Router(tags=["human tasks"])

Reader = Annotated[Principal, Depends(require("human:read"))]
Writer = Annotated[Principal, Depends(require("human:write"))]


class HumanResume(BaseModel):
    """A decision. `request_id` says which question it answers."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    decision: Literal["approved", "rejected", "edited", "selected", "provided"]
    content: str | None = None
    selected_option: str | None = None
    comment: str | None = None
    expect_digest: str | None = Field(default=None, description="The `subject_digest` that was shown.")
    metadata: dict[str, object] = Field(default_factory=dict)


@router.get("/human-tasks", operation_id="list_human_tasks", responses=shows(answers.HumanTaskList))
def list_human_tasks(
    service: Here,
    _principal: Reader,
    run_id: str | None = None,
    status: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    sort_order: Literal["asc", "desc"] = "asc",
) -> Json:
    """List what waits for people, the oldest first."""
    statuses = _statuses(status)
    with service.store.read() as tx:
        found = tasks.list_tasks(
            tx, statuses=statuses, run_id=run_id, descending=sort_order == "desc", limit=limit, offset=offset
        )
        total = tasks.count_tasks(tx, statuses=statuses, run_id=run_id)
    items = [wire.human_task(task) for task in found]
    return wire.page("tasks", items, total=total, limit=limit, offset=offset, sort_by="id", sort_order=sort_order)


def _statuses(word: str | None) -> list[TaskStatus]:
    if word is None or word == "pending":
        return sorted(UNRESOLVED)
    return [TaskStatus(word)] if word in TaskStatus.__members__.values() else []


@router.get("/human-tasks/{continuation_id}", operation_id="get_human_task", responses=shows(answers.HumanTask))
def get_human_task(continuation_id: str, service: Here, _principal: Reader) -> Json:
    """Read one task."""
    with service.store.read() as tx:
        return wire.human_task(find(tx, continuation_id))


@router.post("/continuations/{continuation_id}/resume", operation_id="resume_human_task", include_in_schema=False)
@router.post(
    "/human-tasks/{continuation_id}/resume", operation_id="resume_human_task", responses=shows(answers.HumanResumed)
)
def resume_human_task(
    continuation_id: str, body: HumanResume, service: Here, published: Published, principal: Writer
) -> Json:
    """Answer a task; the answer is durable before the run goes on."""
    limit = service.settings.limits.human_content_chars
    if len(body.content or "") > limit:
        msg = f"content is {len(body.content or '')} characters long; at most {limit} are accepted."
        raise Invalid(msg, code="input_too_large", field="content", limit=limit)
    answer = Answer(
        request_id=body.request_id,
        decision=DecisionKind(body.decision),
        content=body.content,
        selected_option=body.selected_option,
        comment=body.comment,
        expect_digest=body.expect_digest,
    )
    answered = decide(service.store, continuation_id, answer, actor=principal.name)
    service.poke()
    run = wait_until_settled(service.store, answered.run_id, SYNC_SECONDS)
    return wire.human_resumed(run, answered, open_task(service, run), published=published)
