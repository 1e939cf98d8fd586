"""Operations on human tasks that do not decide them: list, claim, assign, snooze, comment, count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypedDict

from pydantic import Field

from kneo.api.operation import Body, Context, operation
from kneo.api.page import (
    Limit,
    Moment,
    Offset,
    Order,
    limit_search,
    page_fields,
    parse_period,
    search_period,
    stored_time,
    total_of,
)
from kneo.api.subjects import TASK
from kneo.api.task_views import HumanTaskPageView, HumanTaskView, TaskEventView
from kneo.clock import first_id, isoformat
from kneo.errors import InvalidValue
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.store import task_statistics, tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import TaskFilter
from kneo.store.task_statistics import TaskSummary
from kneo.tasks import inbox
from kneo.tasks.people import identities_of
from kneo.tasks.review import GateStatistics, edits_to_compare, review_gates

ME = "me"
"""The caller, as the value of a filter."""

MAX_TASKS = 5_000
"""The newest tasks, from which statistics are computed."""

MAX_GATES = 200

TaskOrder = Literal["id", "created_at", "priority", "due_at", "expires_at"]


@operation("GET", "/human-tasks", scope="human:read", about=TASK)
def list_human_tasks(
    context: Context,
    *,
    run_id: str | None = None,
    status: Annotated[str | None, Field(description="A status, or pending, escalated, overdue, all.")] = None,
    kind: str | None = None,
    environment: str | None = None,
    assignee: Annotated[str | None, Field(description="A name, or me.")] = None,
    claimed_by: Annotated[str | None, Field(description="A name, or me.")] = None,
    candidate: Annotated[
        str | None, Field(description="Only tasks that this person may decide: a name, or me.")
    ] = None,
    step_id: str | None = None,
    workflow_name: str | None = None,
    workflow_kind: str | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    q: Annotated[
        str | None,
        Field(
            max_length=200,
            description="A part of the title. Among resolved tasks the search covers a period of up to 366 days; without "
            "created_after, the 30 days before created_before or now. The answer's `searched` is the period.",
        ),
    ] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    after: Annotated[str | None, Field(description="`next_after` of the previous page.")] = None,
    sort_by: TaskOrder | None = None,
    sort_order: Order = "asc",
) -> HumanTaskPageView:
    """List open tasks, oldest first; overdue tasks by their due date."""

    def person(name: str | None) -> str | None:
        return context.actor if name == ME else name

    with context.store.read() as tx:
        who = person(candidate)
        where = TaskFilter(
            **_status_filter(tx, status),
            run_id=run_id,
            kind=kind,
            environment=environment,
            assignee=person(assignee),
            claimed_by=person(claimed_by),
            step_id=step_id,
            workflow_name=workflow_name,
            workflow_type=workflow_kind.replace("_", "-") if workflow_kind is not None else None,
            who=identities_of(tx, who) if who is not None else None,
            created_after=stored_time(created_after),
            created_before=stored_time(created_before),
            text=q or None,
        )
        searched = None
        if where.reads_history:
            searched = search_period(tx.now, created_after, created_before)
            where = replace(where, created_after=searched.created_after)
        order = sort_by or ("id" if where.overdue_at is None else "due_at")
        descending, last = sort_order == "desc", after or None
        with limit_search(context, tx, q, searched):
            rows = tasks.list_tasks(
                tx, where, sort_by=order, descending=descending, limit=limit, offset=offset, after=last
            )
            total = total_of(rows, lambda: tasks.count_tasks(tx, where), limit=limit, offset=offset, after=last)
    return HumanTaskPageView(
        tasks=[HumanTaskView.of(task) for task in rows],
        next_after=rows[-1].id if len(rows) == limit else None,
        searched=searched,
        **page_fields(rows, total, limit=limit, offset=offset, sort_by=order, sort_order=sort_order),
    )


class StatusFilter(TypedDict, total=False):
    """The conditions of a status in a filter."""

    statuses: Collection[TaskStatus]
    escalated: bool
    overdue_at: str


def _status_filter(tx: Tx, status: str | None) -> StatusFilter:
    match status:
        case None | "unresolved":
            return {"statuses": UNRESOLVED}
        case "all":
            return {"statuses": frozenset(TaskStatus)}
        case "pending":
            return {"statuses": UNRESOLVED, "escalated": False}
        case "escalated":
            return {"statuses": UNRESOLVED, "escalated": True}
        case "overdue":
            return {"statuses": UNRESOLVED, "overdue_at": tx.at}
        case _ if status in TaskStatus.__members__.values():
            return {"statuses": frozenset({TaskStatus(status)})}
    known = ", ".join(("unresolved", "pending", "escalated", "overdue", "all", *TaskStatus))
    msg = f"{status[:40]!r} is not a task status. Known: {known}."
    raise InvalidValue(msg, code="validation_error", field="status")


@operation("GET", "/human-tasks/summary", scope="human:read", about=TASK)
def summarise_human_tasks(context: Context) -> TaskSummary:
    """Count open tasks by status, kind and environment."""
    with context.store.read() as tx:
        return task_statistics.summary(tx)


@dataclass(frozen=True, kw_only=True)
class TaskStatsView:
    """Review statistics of gates."""

    since: str
    until: str
    tasks: int
    truncated: Annotated[bool, Field(description="Whether there are more tasks or gates than the statistics include.")]
    gates: list[GateStatistics]


@operation("GET", "/human-tasks/stats", scope="human:read", about=TASK)
def get_human_task_stats(
    context: Context,
    since: Annotated[
        str, Field(max_length=20, description="Tasks that were opened in this period.", examples=["30d"])
    ] = "30d",
    environment: str | None = None,
    workflow_name: str | None = None,
) -> TaskStatsView:
    """Compute review statistics for each gate: response times, edits, rejections, agreement."""
    period = parse_period(since)
    with context.store.read() as tx:
        start, until = tx.now - period, tx.at
        newest = task_statistics.newest(
            tx, first_id("cont", start), environment=environment, workflow_name=workflow_name, limit=MAX_TASKS + 1
        )
        outcomes = newest[:MAX_TASKS]
        subjects = task_statistics.subjects(tx, edits_to_compare(outcomes))
    gates = review_gates(outcomes, subjects)
    return TaskStatsView(
        since=isoformat(start),
        until=until,
        tasks=len(outcomes),
        truncated=len(newest) > MAX_TASKS or len(gates) > MAX_GATES,
        gates=list(gates[:MAX_GATES]),
    )


@dataclass(frozen=True, kw_only=True)
class TaskHistoryView:
    """The events of a task."""

    continuation_id: str
    events: list[TaskEventView]


@operation("GET", "/human-tasks/{continuation_id}/history", scope="human:read", about=TASK)
def get_human_task_history(context: Context, continuation_id: str) -> TaskHistoryView:
    """List the events of a task, comments included."""
    with context.store.read() as tx:
        inbox.find(tx, continuation_id)
        events = [TaskEventView.of(event) for event in tasks.events_of(tx, continuation_id)]
    return TaskHistoryView(continuation_id=continuation_id, events=events)


@operation("POST", "/human-tasks/{continuation_id}/claim", scope="human:write", about=TASK)
def claim_human_task(context: Context, continuation_id: str) -> HumanTaskView:
    """Claim a task so that others do not work on it."""
    return HumanTaskView.of(inbox.claim(context.store, continuation_id, actor=context.actor))


@operation("POST", "/human-tasks/{continuation_id}/unclaim", scope="human:write", about=TASK)
def unclaim_human_task(context: Context, continuation_id: str) -> HumanTaskView:
    """Release a claimed task."""
    return HumanTaskView.of(inbox.unclaim(context.store, continuation_id, actor=context.actor))


class TaskReceiver(Body):
    """The new assignee of a task."""

    to: str = Field(min_length=1, max_length=200, description="The name of a known person.")
    comment: str | None = None


@operation("POST", "/human-tasks/{continuation_id}/assign", scope="human:write", about=TASK)
def assign_human_task(context: Context, continuation_id: str, body: TaskReceiver) -> HumanTaskView:
    """Assign a task to a person."""
    task = inbox.assign(context.store, continuation_id, body.to, actor=context.actor, comment=body.comment)
    return HumanTaskView.of(task)


@operation("POST", "/human-tasks/{continuation_id}/delegate", scope="human:write", about=TASK)
def delegate_human_task(context: Context, continuation_id: str, body: TaskReceiver) -> HumanTaskView:
    """Delegate a task that the caller may decide to another candidate."""
    task = inbox.delegate(context.store, continuation_id, body.to, actor=context.actor, comment=body.comment)
    return HumanTaskView.of(task)


class TaskSnooze(Body):
    """The time until which a task is hidden."""

    until: str = Field(description="An ISO-8601 time with a zone.")


@operation("POST", "/human-tasks/{continuation_id}/snooze", scope="human:write", about=TASK)
def snooze_human_task(context: Context, continuation_id: str, body: TaskSnooze) -> HumanTaskView:
    """Hide a task until a time. Its deadline does not change."""
    return HumanTaskView.of(inbox.snooze(context.store, continuation_id, body.until, actor=context.actor))


class TaskComment(Body):
    """A comment on a task."""

    text: str


@operation("POST", "/human-tasks/{continuation_id}/comments", scope="human:write", about=TASK)
def comment_human_task(context: Context, continuation_id: str, body: TaskComment) -> HumanTaskView:
    """Comment on a task without deciding it."""
    return HumanTaskView.of(inbox.comment(context.store, continuation_id, body.text, actor=context.actor))
