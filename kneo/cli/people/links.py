"""``kneo task link``: one-time approval links."""

from __future__ import annotations

from typing import Annotated

import typer

from kneo.api.links import LinkRequest
from kneo.api.links import create_link as create_operation
from kneo.api.links import list_links as list_operation
from kneo.api.links import revoke_link as revoke_operation
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.people.tasks import TaskArgument
from kneo.cli.requests import request

app = typer.Typer(help="Manage one-time approval links", no_args_is_help=True)


@app.command("create")
@examples("kneo task link create cont_01m0", "kneo task link create cont_01m0 --person ann --expires 30m")
def create(
    task: TaskArgument,
    person: Annotated[str | None, typer.Option("--person", help="Person who decides with it; default: you.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="Lifetime: 30m, 24h, up to 30d.")] = "24h",
    *,
    options: ServiceOptions,
) -> None:
    """Create a one-time link. It is shown only now; who has it can decide the task once, as that person.

    Opening the page of a link changes nothing, so mail scanners do no harm.
    """
    with options.open() as opened:
        view = opened.call(create_operation, task, request(LinkRequest, person=person, expires_in=expires))

    def text() -> None:
        render.success(f"{view.person} can decide {task} once, until {view.expires_at}:")
        render.text(view.url or view.path)
        if view.url is None:
            render.text("This is a path. Set KNEO_SERV_PUBLIC_URL to the address of the service for whole links.")

    render.emit(view, as_json=options.as_json, text=text)


@app.command("list")
@examples("kneo task link list cont_01m0", "kneo task link list cont_01m0 --json")
def list_links(task: TaskArgument, *, options: ServiceOptions) -> None:
    """List the links of a task and the state of each, without their addresses."""
    with options.open() as opened:
        view = opened.call(list_operation, task)

    def text() -> None:
        if not view.links:
            render.text(f"{task} has no links.")
            return
        rows = [[link.id, link.person, link.state, link.created_by, link.expires_at] for link in view.links]
        render.table("", ["Link", "Person", "State", "Created by", "Expires"], rows)

    render.emit(view, as_json=options.as_json, text=text)


@app.command("revoke")
@examples("kneo task link revoke cont_01m0 lnk_01m0", "kneo task link revoke cont_01m0 lnk_01m0 --json")
def revoke(
    task: TaskArgument,
    link_id: Annotated[str, typer.Argument(metavar="LINK", help="Id of the link, as kneo task link list shows.")],
    *,
    options: ServiceOptions,
) -> None:
    """Revoke a link."""
    with options.open() as opened:
        view = opened.call(revoke_operation, task, link_id)
    render.emit(view, as_json=options.as_json, text=lambda: render.success(f"Revoked {link_id}."))
