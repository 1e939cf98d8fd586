"""``kneo human link``: answering from wherever a question is read, without a key."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.people.human import TaskArgument

app = typer.Typer(help="Links with which one person answers one question once.", no_args_is_help=True)


@app.command("create")
def create(
    continuation_id: TaskArgument,
    person: Annotated[str | None, typer.Option("--person", help="Who answers with it; left out: you.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="How long it works: 30m, 24h, up to 30d.")] = "24h",
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a link. It is shown now and never again; whoever has it can answer, once, as that person.

    Looking at the page behind it changes nothing, so scanners of mail do no harm.
    """
    order: Json = {"expires_in": expires}
    if person is not None:
        order["person"] = person
    with backend(service_url, profile) as asked:
        answer = asked.make_link(continuation_id, order)

    def text() -> None:
        render.success(f"{answer['person']} can answer {continuation_id} once, until {answer['expires_at']}:")
        render.text(f"{answer['url'] or answer['path']}")
        if answer["url"] is None:
            render.text("That is a path at your service; KNEO_SERV_PUBLIC_URL says its address.")

    render.emit(answer, as_json=as_json, text=text)


@app.command("list")
def list_links(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the links to a question, and which of them still work. Nobody can see their addresses."""
    with backend(service_url, profile) as asked:
        answer = asked.links(continuation_id)
    items = answer["links"]
    assert isinstance(items, list)

    def text() -> None:
        if not items:
            render.text(f"There are no links to {continuation_id}.")
            return
        render.table("", ["Link", "For", "State", "Made by", "Until"], rows)

    rows = [[item["id"], item["person"], item["state"], item["created_by"], item["expires_at"]] for item in items]
    render.emit(answer, as_json=as_json, text=text)


@app.command("revoke")
def revoke(
    continuation_id: TaskArgument,
    link_id: Annotated[str, typer.Argument(metavar="LINK_ID")],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a link work no longer."""
    with backend(service_url, profile) as asked:
        answer = asked.revoke_link(continuation_id, link_id)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"{link_id} answers nothing any more."))
