"""The operation that lists what waits for a person: human tasks and pending changes of environments together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kneo.api.may_answer import MayAnswerView, approval_gates, may_decide_change, may_decide_task, waits_for
from kneo.api.operation import ANY_KEY, Context, Json, Principal, operation
from kneo.api.page import view_of
from kneo.api.subjects import TASK
from kneo.api.task_views import votes_of
from kneo.records.release import Pending
from kneo.records.task import UNRESOLVED, HumanTask, TaskStatus
from kneo.store import releases, tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import TaskFilter
from kneo.tasks.people import identities_of, read_previous_reviewers

Show = Literal["mine", "all", "overdue", "decided"]

EXCERPT_CHARS = 160
"""Characters of a subject in a list."""

MAX_CHANGES = 100
"""Pending changes in a list."""

READY = frozenset({TaskStatus.OPEN, TaskStatus.CLAIMED})
"""Statuses of tasks that are not hidden until a later time."""


@dataclass(frozen=True, kw_only=True)
class InboxTaskView:
    """A human task in the inbox, without its whole subject."""

    kind: Literal["task"] = "task"
    id: str
    title: str
    headline: Annotated[
        str,
        Field(description="The question in one line: the call that it is about, else the first line of the prompt."),
    ]
    prompt: str
    excerpt: Annotated[
        str,
        Field(
            description=f"The first {EXCERPT_CHARS} characters of the subject, in one line. Empty for a call: the headline names it."
        ),
    ]
    type: str
    status: str
    run_id: str
    workflow_name: str | None
    environment: str | None
    step_path: str
    requester: str
    claimed_by: str | None
    snoozed_until: str | None
    escalation: int
    due_at: str | None
    deadline_at: str | None
    on_timeout: str
    quorum: Json
    created_at: str
    resolved_at: str | None
    decision: str | None
    decided_by: str | None
    may_answer: MayAnswerView

    @classmethod
    def of(cls, task: HumanTask, may_answer: MayAnswerView) -> InboxTaskView:
        """Build the view of a task."""
        return view_of(
            cls,
            task,
            kind="task",
            title=one_line(task.title),
            headline=one_line(task.headline),
            prompt=one_line(task.prompt),
            excerpt="" if task.is_about_a_call else one_line(task.subject),
            type=task.kind,
            status=task.status.value,
            quorum=votes_of(task)["quorum"],
            decision=task.decision.kind.value if task.decision is not None else None,
            decided_by=task.decision.actor if task.decision is not None else None,
            may_answer=may_answer,
        )


@dataclass(frozen=True, kw_only=True)
class InboxChangeView:
    """A pending change of an environment in the inbox."""

    kind: Literal["promotion"] = "promotion"
    id: str
    environment: str
    bundle: str
    version: str
    change: Annotated[str, Field(description="`promote`, `rollback`, `retire` or `policy`.")]
    gate: str
    reason: str
    message: str
    who: list[str]
    since: str
    may_answer: MayAnswerView

    @classmethod
    def of(cls, environment: str, item: Pending, may_answer: MayAnswerView) -> InboxChangeView:
        """Build the view of a pending change."""
        return view_of(
            cls,
            item,
            kind="promotion",
            environment=environment,
            change=item.kind,
            who=list(dict.fromkeys(name for gate in approval_gates(item) for name in gate.who)),
            may_answer=may_answer,
        )


@dataclass(frozen=True, kw_only=True)
class InboxView:
    """What waits for the caller: pending changes, then human tasks, the next deadline first, then the oldest."""

    items: list[Annotated[InboxChangeView | InboxTaskView, Field(discriminator="kind")]]
    count: Annotated[int, Field(description="How many tasks and changes wait for the caller, on all pages.")]
    next_after: str | None
    note: Annotated[
        str | None,
        Field(description="With `mine`, of a caller who decides nothing: why nothing waits, and what it takes."),
    ]


def one_line(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text[: EXCERPT_CHARS * 4].split())
    return line if len(line) <= EXCERPT_CHARS else line[: EXCERPT_CHARS - 1] + "…"


@operation("GET", "/inbox", scope=ANY_KEY, about=TASK)
def get_inbox(
    context: Context,
    show: Annotated[Show, Field(description="`mine`: what the caller may decide now; `all`: what is open.")] = "mine",
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
    after: Annotated[str | None, Field(max_length=40, description="`next_after` of the previous page.")] = None,
) -> InboxView:
    """List the human tasks and pending changes that wait for the caller, and their number."""
    with context.store.read() as tx:
        changes = list(_changes(tx, context, show)) if after is None and show in {"mine", "all"} else []
        rows = _tasks(tx, context, show, limit, after)
        read_previous_reviewers(tx, rows)
        items = [InboxTaskView.of(task, may_decide_task(tx, task, context.principal)) for task in rows]
        count = _count(tx, context)
    next_after = rows[-1].id if len(rows) == limit else None
    note = _note(context.principal) if show == "mine" else None
    return InboxView(items=[*changes, *items], count=count, next_after=next_after, note=note)


def _note(caller: Principal) -> str | None:
    """Explain to a caller who decides nothing why nothing waits."""
    if caller.may("human:write") or caller.may("releases:decide"):
        return None
    return (
        f"{caller.name} decides neither tasks nor releases: that takes the scope human:write or releases:decide, as the roles "
        "reviewer and approver have."
    )


@dataclass(frozen=True, kw_only=True)
class InboxCountView:
    """How many tasks and changes wait for the caller."""

    count: int


@operation("GET", "/inbox/count", scope=ANY_KEY, about=TASK)
def count_inbox(context: Context) -> InboxCountView:
    """Count the human tasks and pending changes that wait for the caller."""
    with context.store.read() as tx:
        return InboxCountView(count=_count(tx, context))


def _filter(tx: Tx, context: Context, show: Show) -> TaskFilter:
    match show:
        case "mine":
            return TaskFilter(statuses=READY, who=identities_of(tx, context.actor))
        case "overdue":
            return TaskFilter(overdue_at=tx.at)
        case "decided":
            return TaskFilter(statuses=frozenset(TaskStatus) - UNRESOLVED)
        case "all":
            return TaskFilter()


def _tasks(tx: Tx, context: Context, show: Show, limit: int, after: str | None) -> tuple[HumanTask, ...]:
    if not context.principal.may("human:write" if show == "mine" else "human:read"):
        return ()
    decided = show == "decided"
    order = "id" if decided else "expires_at"
    where = _filter(tx, context, show)
    return tasks.list_tasks(tx, where, sort_by=order, descending=decided, limit=limit, after=after)


def _changes(tx: Tx, context: Context, show: Show) -> Iterator[InboxChangeView]:
    if not context.principal.may("releases:read"):
        return
    found = [
        (environment, item)
        for environment, item in releases.list_pending(tx)
        if (_is_mine(context, item) if show == "mine" else any(approval_gates(item)))
    ]
    for environment, item in sorted(found, key=lambda one: one[1].since)[:MAX_CHANGES]:
        may_answer = may_decide_change(tx, context.settings, environment, item, context.principal)
        yield InboxChangeView.of(environment, item, may_answer)


def _is_mine(context: Context, item: Pending) -> bool:
    return context.principal.may("releases:decide") and waits_for(item, context.actor)


def _count(tx: Tx, context: Context) -> int:
    changes = sum(_is_mine(context, item) for _, item in releases.list_pending(tx))
    if not context.principal.may("human:write"):
        return changes
    return changes + tasks.count_tasks(tx, _filter(tx, context, "mine"))
