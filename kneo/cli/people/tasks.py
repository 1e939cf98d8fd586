"""``kneo task``, ``kneo inbox`` and ``kneo me``: human tasks, what waits for the caller, and who the caller is."""

from __future__ import annotations

import itertools
import textwrap
from datetime import datetime
from typing import Annotated

import typer

from kneo.api import tasks as api
from kneo.api.identity import CallerView, get_me
from kneo.api.inbox import InboxChangeView, InboxTaskView, InboxView, Show, get_inbox
from kneo.api.task_views import HumanTaskPageView, HumanTaskView
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.options import Period, time_after
from kneo.clock import SystemClock, isoformat
from kneo.errors import Usage
from kneo.store.task_statistics import TaskSummary


@examples("kneo inbox", "kneo inbox --show overdue --json")
def inbox(
    show: Annotated[Show, typer.Option("--show", help="Which tasks and changes to list.")] = "mine",
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Most tasks to list.")] = 50,
    after: Annotated[str | None, typer.Option("--after", help="Continue after this task.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """List the tasks and pending changes that wait for you, the next deadline first."""
    options.show(get_inbox, _show_inbox, show=show, limit=limit, after=after)


def _show_inbox(listed: InboxView) -> None:
    if not listed.items:
        render.text("No tasks and no pending changes.")
        if listed.note is not None:
            render.text(f"{listed.note}\nSee what waits for others: kneo inbox --show all")
        return
    now = SystemClock().now()
    rows = [
        _change_row(item, now) if isinstance(item, InboxChangeView) else _task_row(item, now) for item in listed.items
    ]
    render.table("", ["Id", "What", "Environment", "Since", "Deadline"], rows)
    waiting = "1 task or change waits" if listed.count == 1 else f"{listed.count} tasks and changes wait"
    render.text(f"{waiting} for you." + (f" Next page: --after {listed.next_after}" if listed.next_after else ""))


def _task_row(item: InboxTaskView, now: datetime) -> list[object]:
    since, deadline = (render.relative(at, now) for at in (item.created_at, item.deadline_at))
    return [item.id, item.headline, item.environment, since, deadline]


def _change_row(item: InboxChangeView, now: datetime) -> list[object]:
    what = f"{item.change} {item.bundle} {item.version}".strip()
    return [item.id, what, item.environment, render.relative(item.since, now), None]


@examples("kneo me", "kneo me --json")
def me(*, options: ServiceOptions) -> None:
    """Show your name, scopes, groups and roles."""
    options.show(get_me, _show_caller)


def _show_caller(caller: CallerView) -> None:
    render.panel(caller.name, [("Scopes", " ".join(caller.scopes))])
    if caller.environments:
        rows = [
            [one.environment, ", ".join(one.groups), ", ".join(one.roles), "yes" if one.approver else "no"]
            for one in caller.environments
        ]
        render.table("", ["Environment", "Groups", "Roles", "Approver"], rows)


app = typer.Typer(no_args_is_help=True)

QUESTION_CHARS = 100
"""Most of a question that a list shows."""

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Id of the task (cont_…), as kneo task list shows.")]
ToOption = Annotated[str, typer.Option("--to", help="Name of the person.")]


@app.command("list")
@examples("kneo task list --mine", "kneo task list --env prod --status overdue --json")
def list_tasks(
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only tasks of this run.")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="pending, escalated, overdue, all, open, claimed, decided, …; default: open tasks."
        ),
    ] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only tasks that you may decide.")] = False,
    environment: Annotated[str | None, typer.Option("--env", help="Only tasks of this environment.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only tasks of this workflow.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="approval, review, correction, selection or freeform.")
    ] = None,
    assignee: Annotated[
        str | None, typer.Option("--assignee", help="Only tasks assigned to this person: a name, or me.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--search", help="Only tasks with this text in their title; resolved ones of the last 30 days."),
    ] = None,
    sort_by: Annotated[
        api.TaskOrder | None, typer.Option("--sort", help="Default: oldest first; overdue tasks by their due date.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most tasks to list.")] = 100,
    after: Annotated[str | None, typer.Option("--after", help="Continue after this task.")] = None,
    *,
    period: Period,
    options: ServiceOptions,
) -> None:
    """List open tasks, oldest first."""
    options.show(
        api.list_human_tasks,
        lambda page: _show_page(page, period),
        run_id=run_id,
        status=status,
        candidate=api.ME if mine else None,
        environment=environment,
        workflow_name=workflow,
        kind=kind,
        assignee=assignee,
        created_after=period.created_after,
        created_before=period.created_before,
        q=text,
        sort_by=sort_by,
        sort_order="desc" if sort_by == "priority" else "asc",
        limit=limit,
        after=after,
    )


def _show_page(page: HumanTaskPageView, period: Period) -> None:
    period.show(page.searched)
    if not page.tasks:
        render.text("No open tasks.")
        return
    now = SystemClock().now()
    rows = [
        [
            task.continuation_id,
            task.step_id,
            textwrap.shorten(task.headline, QUESTION_CHARS, placeholder=" …"),
            task.environment,
            task.claimed_by or task.assignee,
            render.relative(task.created_at, now),
        ]
        for task in page.tasks
    ]
    render.table("", ["Task", "Step", "Question", "Environment", "Assigned", "Since"], rows, unbroken=("Task",))
    if page.next_after is not None:
        render.text(f"{len(page.tasks)} of {page.total}. Next page: --after {page.next_after}")


def show_task(task: HumanTaskView) -> None:
    """Print the question of a task, its subject and the decisions that it takes."""
    request = task.request
    decisions = request["decisions"]
    assert isinstance(decisions, list)
    lines: list[tuple[str, object]] = [
        ("Question", task.headline),
        *([("Prompt", request["prompt"])] if request["prompt"] != task.headline else []),
        ("Subject", task.current_input),
        ("Run", f"{task.run_id} at {task.step_id}"),
        ("Status", task.status),
        ("Request", task.pending_human_request_id),
        ("Decisions", ", ".join(decisions)),
    ]
    if task.receipt == "signed_by_reviewer":
        lines.append(("Signature", "required from the reviewer, with --key"))
    if request["assignee"]:
        lines.append(("Assignee", request["assignee"]))
    render.panel(f"Task {task.continuation_id}", lines)


@examples("kneo task claim cont_01m0", "kneo task claim cont_01m0 --profile prod")
def claim(task: TaskArgument, *, options: ServiceOptions) -> None:
    """Claim a task so that others do not work on it."""
    options.show(api.claim_human_task, lambda _: render.success(f"Claimed {task}."), task)


@examples("kneo task release cont_01m0", "kneo task release cont_01m0 --json")
def release(task: TaskArgument, *, options: ServiceOptions) -> None:
    """Release a task that you claimed."""
    options.show(api.unclaim_human_task, lambda _: render.success(f"Released {task}."), task)


@examples("kneo task assign cont_01m0 --to ann", "kneo task assign cont_01m0 --to bob --profile prod")
def assign(task: TaskArgument, to: ToOption, *, options: ServiceOptions) -> None:
    """Assign a task to a person."""
    body = request(api.TaskReceiver, to=to)
    options.show(api.assign_human_task, lambda view: render.success(f"Assigned {task} to {view.assignee}."), task, body)


@examples(
    "kneo task delegate cont_01m0 --to bob", "kneo task delegate cont_01m0 --to bob --comment 'I am away until Monday'"
)
def delegate(
    task: TaskArgument,
    to: ToOption,
    comment: Annotated[str | None, typer.Option("--comment", help="Reason for the delegation.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Delegate your task to another candidate."""
    body = request(api.TaskReceiver, to=to, comment=comment)
    options.show(
        api.delegate_human_task, lambda view: render.success(f"Delegated {task} to {view.assignee}."), task, body
    )


@examples("kneo task snooze cont_01m0 --for 4h", "kneo task snooze cont_01m0 --until 2027-01-04T08:00:00Z")
def snooze(
    task: TaskArgument,
    hide_for: Annotated[str | None, typer.Option("--for", help="Duration: 30m, 4h, 2d.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Or the end, as an ISO-8601 time.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Hide a task until a later time. Its deadline does not change."""
    if hide_for is not None and until is None:
        until = isoformat(time_after(hide_for))
    elif until is None or hide_for is not None:
        msg = "Pass --for or --until, one of them."
        raise Usage(msg, hint="kneo task snooze TASK --for 4h")
    body = request(api.TaskSnooze, until=until)
    options.show(api.snooze_human_task, lambda _: render.success(f"Hidden {task} until {until}."), task, body)


@examples("kneo task comment cont_01m0 'Legal has seen this'", "kneo task comment cont_01m0 'See ticket 42' --json")
def comment(
    task: TaskArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The comment.")],
    *,
    options: ServiceOptions,
) -> None:
    """Comment on a task without deciding it."""
    body = request(api.TaskComment, text=text)
    options.show(api.comment_human_task, lambda _: render.success(f"Commented on {task}."), task, body)


@examples("kneo task history cont_01m0", "kneo task history cont_01m0 --json")
def history(task: TaskArgument, *, options: ServiceOptions) -> None:
    """Show the events of a task."""
    options.show(api.get_human_task_history, _show_history, task)


def _show_history(view: api.TaskHistoryView) -> None:
    rows = [[event.at, event.type, event.actor, _detail(event.data)] for event in view.events]
    render.table("", ["Time", "Event", "Person", "Detail"], rows)


def _detail(data: dict[str, object]) -> str:
    detail = str(data.get("text") or data.get("comment") or data.get("to") or data.get("decision") or "")
    return f"{detail} via {data['via']}" if data.get("via") else detail


@examples("kneo task summary", "kneo task summary --json")
def summary(*, options: ServiceOptions) -> None:
    """Count open tasks by status, kind and environment."""
    options.show(api.summarise_human_tasks, _show_summary)


def _show_summary(view: TaskSummary) -> None:
    lines = [("waiting", view.waiting), ("escalated", view.escalated), ("overdue", view.overdue)]
    for name, counts in (("status", view.by_status), ("kind", view.by_kind), ("environment", view.by_environment)):
        lines += [(f"{name} {word or '(none)'}", count) for word, count in counts.items()]
    render.panel("Inbox", lines)


@examples("kneo task watch", "kneo task watch --count 10 --json")
def watch(
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after this many events.")] = None,
    after: Annotated[str | None, typer.Option("--after", help="Continue after this event.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Watch the inbox for new and closed tasks; with --json one event per line."""
    with options.open() as opened:
        for event in itertools.islice(opened.follow_tasks(after), count):
            data = event["data"]
            assert isinstance(data, dict)
            if options.as_json:
                render.print_line(event)
            else:
                who, detail = event["actor"] or "-", _detail(data)
                render.text(f"{event['at']}  {event['type']:<18} {event['continuation_id']}  {who}  {detail}".rstrip())
