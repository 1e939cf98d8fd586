"""``kneo sessions``: what agents remember of earlier runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kneo.api.sessions import delete_session, list_session_messages, list_sessions
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions

app = typer.Typer(no_args_is_help=True)

EnvironmentOption = Annotated[str | None, typer.Option("--env", help="Only sessions of this environment.")]
RequesterOption = Annotated[str | None, typer.Option("--requester", help="Whose sessions; default: yours.")]


@app.command("list")
@examples("kneo sessions list", "kneo sessions list --env prod --requester ann --json")
def list_(
    environment: EnvironmentOption = None,
    requester: RequesterOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of sessions to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of sessions to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """List the sessions whose messages agents remember, the last used first."""
    with options.open() as opened:
        page = opened.call(list_sessions, environment=environment, requester=requester, limit=limit, offset=offset)

    def text() -> None:
        if not page.sessions:
            render.text("No sessions.")
            return
        rows: list[list[object]] = [
            [each.session_id, each.environment, each.message_count, each.created_at, each.updated_at]
            for each in page.sessions
        ]
        render.table("Sessions", ["Session", "Environment", "Messages", "Created", "Last used"], rows)
        shown = page.offset + page.count
        if shown < page.total:
            render.text(f"{page.count} of {page.total}. Next page: --offset {shown}")

    render.emit(page, as_json=options.as_json, text=text)


@app.command("show")
@examples("kneo sessions show trip", "kneo sessions show trip --env prod --agent support --json")
def show(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session, as kneo sessions list shows.")],
    environment: Annotated[
        str | None, typer.Option("--env", help="The environment, where several have the session.")
    ] = None,
    requester: RequesterOption = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only the messages of this agent.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of messages to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of messages to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """Show the messages that agents remember of a session, in their order."""
    with options.open() as opened:
        page = opened.call(
            list_session_messages,
            session,
            environment=environment,
            requester=requester,
            agent=agent,
            whole=whole,
            limit=limit,
            offset=offset,
        )

    def text() -> None:
        for message in page.messages:
            render.text(f"{message.created_at}  {message.agent}  {message.role}")
            render.text(f"  {message.text}")
        if not page.messages:
            render.text("No messages.")
        shown = page.offset + page.count
        if shown < page.total:
            render.text(f"{page.count} of {page.total}. Next page: --offset {shown}")

    render.emit(page, as_json=options.as_json, text=text)


@app.command("delete")
@examples("kneo sessions delete trip", "kneo sessions delete trip --env prod --requester ann --json")
def delete(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session, as kneo sessions list shows.")],
    environment: EnvironmentOption = None,
    requester: RequesterOption = None,
    *,
    options: ServiceOptions,
) -> None:
    """Delete what agents remember of a session. Its runs stay until their own retention ends."""
    with options.open() as opened:
        view = opened.call(delete_session, session, environment=environment, requester=requester)

    def text() -> None:
        render.success(f"Deleted the session {view.session_id} of {view.requester}: {view.message_count} messages.")

    render.emit(view, as_json=options.as_json, text=text)
