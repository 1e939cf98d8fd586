"""``kneo inbox`` and ``kneo me``: what waits for the caller, and who the caller is."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from kneo.api.identity import CallerView, get_me
from kneo.api.inbox import InboxChangeView, InboxTaskView, InboxView, Show, get_inbox
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.errors import Usage


@examples("kneo inbox", "kneo inbox --show overdue --json")
def inbox(
    show: Annotated[str, typer.Option("--show", help="mine, all, overdue or decided.")] = "mine",
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Most tasks to list.")] = 50,
    after: Annotated[str | None, typer.Option("--after", help="Continue after this task.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """List the tasks and pending changes that wait for you, the next deadline first."""
    if show not in get_args(Show):
        msg = f"--show is {', '.join(get_args(Show))}, not {show[:40]!r}."
        raise Usage(msg)
    with options.open() as opened:
        listed = opened.call(get_inbox, show=cast("Show", show), limit=limit, after=after)
    render.emit(listed, as_json=options.as_json, text=lambda: _show(listed))


def _show(listed: InboxView) -> None:
    if not listed.items:
        render.text("No tasks and no pending changes.")
        return
    rows = [_change(item) if isinstance(item, InboxChangeView) else _task(item) for item in listed.items]
    render.table("", ["Id", "What", "Environment", "Since", "Deadline"], rows)
    waiting = "1 task or change waits" if listed.count == 1 else f"{listed.count} tasks and changes wait"
    render.text(f"{waiting} for you." + (f" Next page: --after {listed.next_after}" if listed.next_after else ""))


def _task(item: InboxTaskView) -> list[object]:
    return [item.id, item.prompt or item.title, item.environment, item.created_at, item.deadline_at]


def _change(item: InboxChangeView) -> list[object]:
    return [item.id, f"{item.change} {item.bundle} {item.version}".strip(), item.environment, item.since, None]


@examples("kneo me", "kneo me --json")
def me(*, options: ServiceOptions) -> None:
    """Show your name, scopes, groups and roles."""
    with options.open() as opened:
        caller = opened.call(get_me)
    render.emit(caller, as_json=options.as_json, text=lambda: _show_caller(caller))


def _show_caller(caller: CallerView) -> None:
    render.panel(caller.name, [("Scopes", " ".join(caller.scopes))])
    if caller.environments:
        rows = [
            [one.environment, ", ".join(one.groups), ", ".join(one.roles), "yes" if one.approver else "no"]
            for one in caller.environments
        ]
        render.table("", ["Environment", "Groups", "Roles", "Approver"], rows)
