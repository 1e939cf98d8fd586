"""Questions about the inbox in the words of requests and commands."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.api import task_views
from kneo.errors import InvalidValue
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.service import wire
from kneo.service.wire import Json
from kneo.store import tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import SORTABLE, TaskFilter
from kneo.tasks.people import identities_of

EQUAL = ("environment", "kind", "assignee", "claimed_by", "step_id", "run_id", "workflow_name")
"""Filters that compare a task's own value."""

ME = "me"

FilterValues = Mapping[str, object]


def task_filter(tx: Tx, asked: FilterValues, me: str) -> TaskFilter:
    """Make a filter of what somebody asks for; ``me`` is who asks.

    Raises:
        Invalid: a status nobody knows.
    """
    values = {name: str(asked[name]) for name in EQUAL if asked.get(name) is not None}
    for name in ("assignee", "claimed_by"):
        if values.get(name) == ME:
            values[name] = me
    candidate = asked.get("candidate")
    return TaskFilter(
        **values,  # type: ignore[arg-type]
        **_status(tx, asked.get("status")),  # type: ignore[arg-type]
        workflow_type=str(asked["workflow_kind"]) if asked.get("workflow_kind") is not None else None,
        who=identities_of(tx, me if candidate == ME else str(candidate)) if candidate is not None else None,
        text=str(asked["q"]) if asked.get("q") else None,
    )


def _status(tx: Tx, word: object) -> dict[str, object]:
    match word:
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
        case _ if word in TaskStatus.__members__.values():
            return {"statuses": frozenset({TaskStatus(str(word))})}
    known = ", ".join(("unresolved", "pending", "escalated", "overdue", "all", *TaskStatus))
    msg = f"{str(word)[:40]!r} is no status of tasks; they are {known}."
    raise InvalidValue(msg, code="validation_error", field="status")


def task_page(tx: Tx, asked: FilterValues, me: str) -> Json:
    """Answer with one page of the inbox.

    Args:
        tx: The transaction.
        asked: Filters, ``sort_by``, ``sort_order``, ``limit``, ``offset`` and ``after``; absent ones mean nothing. What is overdue
            comes in the order in which it was due, everything else in the order in which it was asked.
        me: Who asks.

    Raises:
        Invalid: a status or order nobody knows.
    """
    where = task_filter(tx, asked, me)
    usual = "id" if where.overdue_at is None else "due_at"
    sort_by, sort_order = str(asked.get("sort_by") or usual), str(asked.get("sort_order") or "asc")
    if sort_by not in SORTABLE or sort_order not in {"asc", "desc"}:
        msg = f"Tasks are sorted by {', '.join(SORTABLE)}, asc or desc."
        raise InvalidValue(msg, code="validation_error", field="sort_by")
    limit, offset = int(str(asked.get("limit") or 100)), int(str(asked.get("offset") or 0))
    after = str(asked["after"]) if asked.get("after") else None
    found = tasks.list_tasks(
        tx, where, sort_by=sort_by, descending=sort_order == "desc", limit=limit, offset=offset, after=after
    )
    # What comes to an end here need not be counted.
    ends = after is None and len(found) < limit and (found or not offset)
    total = offset + len(found) if ends else tasks.count_tasks(tx, where)
    items = [task_views.human_task(task) for task in found]
    page = wire.page("tasks", items, total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)
    return {**page, "next_after": found[-1].id if len(found) == limit else None}
