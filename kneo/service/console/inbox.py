"""The inbox: the tasks and pending changes that wait for the person, everybody's, overdue and decided ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from kneo.api.inbox import InboxChangeView, InboxTaskView, Show, count_inbox, get_inbox
from kneo.errors import InvalidValue
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.service.console.page import MenuEntry, Page, PageRequest, Pages, SeeOther
from kneo.service.console.task_words import DONE

pages = Pages(MenuEntry("inbox", "Inbox", "/inbox", "human:read"))

PAGE_SIZE = 50

FILTERS: Mapping[Show, str] = {"mine": "For me", "all": "Everybody's", "overdue": "Overdue", "decided": "Decided"}

EMPTY: Mapping[Show, str] = {
    "mine": "Nothing waits for you.",
    "all": "Nothing waits. A run opens a task at a gate; an environment asks for approval of a release.",
    "overdue": "No task is overdue.",
    "decided": "No task was decided yet.",
}


@dataclass(frozen=True, kw_only=True)
class InboxRow:
    """A task or a pending change as a row of the inbox."""

    id: str
    url: str
    title: str
    excerpt: str
    origin: str
    requester: str = ""
    run_id: str = ""
    """Where rows have the same title, the page shows the run."""

    environment: str | None
    at: str
    deadline: str | None = None
    votes: str = ""
    chip: tuple[str, str] | None

    @classmethod
    def of_task(cls, task: InboxTaskView) -> InboxRow:
        """Build the row of a task."""
        is_open = task.status in UNRESOLVED
        needed, have = task.quorum["approvals"], task.quorum["have"]
        return cls(
            id=task.id,
            url=f"/console/inbox/{task.id}",
            title=task.headline,
            excerpt=task.excerpt,
            origin=task.workflow_name or task.step_path,
            requester=task.requester,
            run_id=task.run_id,
            environment=task.environment,
            at=task.created_at if is_open else task.resolved_at or task.created_at,
            deadline=task.deadline_at if is_open else None,
            votes=f"{have} of {needed} approved" if needed != 1 and is_open else "",
            chip=_chip(task),
        )

    @classmethod
    def of_change(cls, change: InboxChangeView) -> InboxRow:
        """Build the row of a pending change."""
        return cls(
            id=change.id,
            url=f"/console/promotions/{change.id}",
            title=f"Release {change.bundle} {change.version} to {change.environment}?"
            if change.change == "promote"
            else f"{change.change.capitalize()}: {change.bundle} {change.version}".strip(),
            excerpt=change.message,
            origin=change.bundle,
            environment=change.environment,
            at=change.since,
            chip=("wait", "release"),
        )


def _chip(task: InboxTaskView) -> tuple[str, str] | None:
    """Return the status of a task, where it is not simply open."""
    match task.status:
        case TaskStatus.OPEN:
            return ("wait", "escalated") if task.escalation else None
        case TaskStatus.CLAIMED:
            return "hold", f"claimed by {task.claimed_by}"
        case TaskStatus.SNOOZED:
            return "off", "snoozed"
        case TaskStatus.EXPIRED:
            return "bad", "expired"
        case TaskStatus.CANCELLED:
            return "off", "cancelled"
    decision = task.decision or ""
    words = f"{task.decided_by} {DONE.get(decision, decision)}"
    return ("bad" if decision == "rejected" else "ok"), words


def rows_of(items: Sequence[InboxTaskView | InboxChangeView]) -> list[InboxRow]:
    """Return the rows of an inbox; the run is named in rows that have the same title."""
    rows = [InboxRow.of_task(item) if isinstance(item, InboxTaskView) else InboxRow.of_change(item) for item in items]
    titles = Counter(row.title for row in rows)
    return [row if titles[row.title] > 1 else replace(row, run_id="") for row in rows]


def count_waiting(request: PageRequest) -> int:
    """Return the number of tasks and changes that wait for the person."""
    return request.call(count_inbox).count


@pages.get("/")
def show_first_page(request: PageRequest) -> SeeOther:
    """Lead a person to the inbox, or to the first page of a person who may not read it."""
    return SeeOther("/console/inbox" if request.may("human:read") else "/console/help")


@pages.get("/help")
def show_help(_request: PageRequest) -> Page:
    """Show the keys."""
    return Page("help.html")


@pages.get("/inbox", scope="human:read")
def show_inbox(request: PageRequest) -> Page:
    """List what waits: the next deadline first, then the oldest."""
    show = _show(request.query.get("show", "mine"))
    listed = request.call(get_inbox, show=show, limit=PAGE_SIZE, after=request.query.get("after") or None)
    return Page(
        "inbox.html",
        {
            "rows": rows_of(listed.items),
            "show": show,
            "filters": list(FILTERS.items()),
            "empty": listed.note or EMPTY[show],
            "others_url": "?show=all" if listed.note else "",
            "next_url": request.query.with_values(after=listed.next_after) if listed.next_after else "",
        },
        live="inbox",
    )


def _show(word: str) -> Show:
    for known in FILTERS:
        if word == known:
            return known
    msg = f"There is no filter {word[:40]!r}."
    raise InvalidValue(msg, hint=f"Filters are {', '.join(get_args(Show))}.")
