"""The inbox: the tasks that wait for the person, everybody's, overdue and decided ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kneo.api.task_views import HumanTaskView
from kneo.api.tasks import list_human_tasks
from kneo.errors import InvalidValue
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.service.console.page import MenuEntry, Page, PageRequest, Pages, SeeOther
from kneo.service.console.words import count, peek

pages = Pages(MenuEntry("inbox", "Inbox", "/inbox", "human:read"))

PAGE_SIZE = 50

FILTERS: Mapping[str, str] = {"mine": "For me", "open": "Everybody's", "overdue": "Overdue", "decided": "Decided"}

EMPTY: Mapping[str, str] = {
    "mine": "Nothing waits for you. Decided tasks are under Decided.",
    "open": "No task is open. A run opens one at a gate.",
    "overdue": "No task is overdue.",
    "decided": "No task was decided yet.",
}


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task as a row of the inbox."""

    id: str
    prompt: str
    subject: str
    workflow: str
    environment: str | None
    created_at: str
    due_at: str | None
    votes: str
    chip: tuple[str, str] | None

    @classmethod
    def of(cls, task: HumanTaskView) -> TaskRow:
        """Build the row of a task."""
        needed, have = task.quorum["approvals"], task.quorum["have"]
        is_open = task.status in UNRESOLVED
        return cls(
            id=task.id,
            prompt=str(task.request["prompt"] or task.request["title"]),
            subject=peek(task.current_input),
            workflow=task.workflow_name or "run",
            environment=task.environment,
            created_at=task.created_at,
            due_at=str(task.timeout["at"]) if task.timeout is not None and is_open else None,
            votes=f"{have} of {needed} approved" if needed != 1 and is_open else "",
            chip=_chip(task),
        )


def _chip(task: HumanTaskView) -> tuple[str, str] | None:
    """Return the status of a task, where it is not simply open."""
    match task.status:
        case TaskStatus.OPEN:
            return ("wait", "escalated") if task.escalated_at is not None else None
        case TaskStatus.CLAIMED:
            return "hold", f"claimed by {task.claimed_by}"
        case TaskStatus.SNOOZED:
            return "off", "snoozed"
        case TaskStatus.EXPIRED:
            return "bad", "expired"
        case TaskStatus.CANCELLED:
            return "off", "cancelled"
    decided = task.decision["kind"] if task.decision is not None else task.status
    return ("bad" if decided == "rejected" else "ok"), str(decided)


def count_waiting(request: PageRequest) -> int:
    """Return the number of tasks that the person may decide."""
    if not request.may("human:read", "human:write"):
        return 0
    return request.call(list_human_tasks, candidate="me", limit=1).total


@pages.get("/")
def show_first_page(request: PageRequest) -> SeeOther:
    """Lead a person who decides to the inbox, and others to the first place that they may see."""
    return SeeOther("/console/inbox" if request.may("human:read") else "/console/help")


@pages.get("/help")
def show_help(_request: PageRequest) -> Page:
    """Show the keys."""
    return Page("help.html")


@pages.get("/inbox", scope="human:read")
def show_inbox(request: PageRequest) -> Page:
    """List tasks: the next deadline first, then the oldest."""
    show = request.query.get("show", "mine")
    if show not in FILTERS:
        msg = f"There is no filter {show[:40]!r}."
        raise InvalidValue(msg, hint=f"Filters are {', '.join(FILTERS)}.")
    after = request.query.get("after") or None
    match show:
        case "mine":
            listed = request.call(list_human_tasks, candidate="me", limit=PAGE_SIZE, after=after)
        case "open":
            listed = request.call(list_human_tasks, limit=PAGE_SIZE, after=after)
        case "overdue":
            listed = request.call(list_human_tasks, status="overdue", sort_by="id", limit=PAGE_SIZE, after=after)
        case _:
            listed = request.call(list_human_tasks, status="applied", sort_order="desc", limit=PAGE_SIZE, after=after)
    tasks = sorted(listed.tasks, key=_deadline) if show in {"mine", "open"} else listed.tasks
    return Page(
        "inbox.html",
        {
            "tasks": [TaskRow.of(task) for task in tasks],
            "show": show,
            "filters": list(FILTERS.items()),
            "lead": f"{count(listed.total, 'task')}, {FILTERS[show].lower()}." if listed.total else "",
            "empty": EMPTY[show],
            "next_url": request.query.with_values(after=listed.next_after) if listed.next_after else "",
            "shown": f"{len(tasks)} of {listed.total}",
        },
        live="inbox",
    )


def _deadline(task: HumanTaskView) -> tuple[str, str]:
    return str(task.timeout["at"]) if task.timeout is not None else "~", task.id
