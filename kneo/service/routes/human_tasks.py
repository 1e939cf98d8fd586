"""The inbox: what people are asked, and their answers."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import Depends, Query
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.records.task import HumanTask
from kneo.service import responses, wire
from kneo.service.auth import require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.router import JsonResponse, Router, responds
from kneo.service.routes.inbox import HumanAnswer
from kneo.service.task_acts import read_answer
from kneo.service.task_detail import task_detail
from kneo.service.task_query import task_page
from kneo.service.waiting import answered
from kneo.service.wire import Json
from kneo.tasks.inbox import decide

router = Router(tags=["human tasks"])

Reader = Annotated[Principal, Depends(require("human:read"))]
Writer = Annotated[Principal, Depends(require("human:write"))]


class HumanResume(HumanAnswer):
    """A decision. `request_id` says which question it answers."""


@router.get("/human-tasks", operation_id="list_human_tasks", responses=responds(responses.HumanTaskList))
def list_human_tasks(
    service: ServiceDep,
    principal: Reader,
    run_id: str | None = None,
    status: Annotated[str | None, Query(description="A status, or pending, escalated, overdue, all.")] = None,
    kind: str | None = None,
    environment: str | None = None,
    assignee: Annotated[str | None, Query(description="A name, or me.")] = None,
    claimed_by: Annotated[str | None, Query(description="A name, or me.")] = None,
    candidate: Annotated[str | None, Query(description="Only what this person may answer: a name, or me.")] = None,
    step_id: str | None = None,
    workflow_name: str | None = None,
    workflow_kind: str | None = None,
    q: Annotated[str | None, Query(max_length=200, description="Somewhere in the title.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    after: Annotated[str | None, Query(description="`next_after` of the page before.")] = None,
    sort_by: Literal["id", "created_at", "priority", "due_at", "expires_at"] | None = None,
    sort_order: Literal["asc", "desc"] = "asc",
) -> Json:
    """List what waits for people, the oldest first."""
    asked: dict[str, object] = {
        "run_id": run_id,
        "status": status,
        "kind": kind,
        "environment": environment,
        "assignee": assignee,
        "claimed_by": claimed_by,
        "candidate": candidate,
        "step_id": step_id,
        "workflow_name": workflow_name,
        "workflow_kind": workflow_kind,
        "q": q,
        "limit": limit,
        "offset": offset,
        "after": after,
        "sort_by": sort_by,
        "sort_order": sort_order,
    }
    with service.store.read() as tx:
        return task_page(tx, asked, principal.name)


@router.get("/human-tasks/{continuation_id}", operation_id="get_human_task", responses=responds(responses.HumanTask))
def get_human_task(continuation_id: str, service: ServiceDep, _principal: Reader) -> Json:
    """Read one task."""
    with service.store.read() as tx:
        return task_detail(tx, continuation_id)


@router.post("/continuations/{continuation_id}/resume", operation_id="resume_human_task", include_in_schema=False)
@router.post(
    "/human-tasks/{continuation_id}/resume",
    operation_id="resume_human_task",
    responses=responds(responses.HumanResumed),
)
async def resume_human_task(
    continuation_id: str, body: HumanResume, service: ServiceDep, published: LegacyClient, principal: Writer
) -> Response:
    """Answer a task; the answer is durable before the run goes on."""
    task, found = await answered(service.changes, partial(_decided, continuation_id, body, service, principal))
    return JsonResponse(wire.human_resumed(found.run, task, found.task, published=published))


def _decided(continuation_id: str, body: HumanResume, service: Service, principal: Principal) -> HumanTask:
    answer = read_answer(body.model_dump(), service.settings.limits.human_content_chars)
    pin = service.settings.trust_root
    return decide(service.store, continuation_id, answer, actor=principal.name, pin=pin)
