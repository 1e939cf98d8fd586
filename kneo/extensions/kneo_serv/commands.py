"""``kneo maintenance import`` and ``kneo maintenance imported-events``: the history of kneo-serv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Annotated, Any

import typer

from kneo.cli import render
from kneo.cli.compose import find_store
from kneo.cli.options import JsonOption
from kneo.extensions.kneo_serv.import_database import import_published
from kneo.extensions.kneo_serv.importer import list_imported_events
from kneo.settings import from_env, user_name


def import_database(
    source: Annotated[str, typer.Argument(metavar="FILE|URL")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be imported, and write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Import the history of kneo-serv from its SQLite file or PostgreSQL database.

    Runs that had not ended are imported as cancelled. Run the command again after an interruption: it continues, and imports
    nothing twice. libpq reads a password from PGPASSWORD or ~/.pgpass.

    Example: kneo maintenance import old/kneo_runs.sqlite --dry-run
    """
    answer = import_published(from_env(), source, actor=user_name(), dry_run=dry_run, progress=_show_progress())
    render.emit(answer, as_json=as_json, text=lambda: _show_import(answer))
    refused = answer["refused"]
    assert isinstance(refused, dict)
    if refused["count"]:
        raise typer.Exit(1)


PROGRESS_RUNS = 1_000
"""Runs between two lines of progress."""


def _show_progress() -> Callable[[int, int], None]:
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done - shown >= PROGRESS_RUNS:
            shown = done
            render.text(f"{done} of {total} runs", err=True)

    return show


def _show_import(answer: Mapping[str, Any]) -> None:
    present = answer["present"]
    rows = [
        (name.replace("_", " "), count, present.get(name, 0), answer["found"].get(name, ""))
        for name, count in answer["imported"].items()
    ]
    head = "Would be imported" if answer["dry_run"] else "Imported"
    render.table("", ["", head, "Present before", "Found"], rows)
    ended, refused = answer["ended"], answer["refused"]
    if ended["count"]:
        render.warning(
            f"{ended['count']} runs had not ended; they are imported as cancelled. Start them again where needed:"
        )
        for run in ended["runs"]:
            waited = f", waited for: {run['waited_for']}" if run["waited_for"] else ""
            render.text(f"  {run['run_id']}  {run['workflow_name'] or ''}  {run['status']}{waited}", err=True)
    for name, rest in answer["not_imported"].items():
        render.text(f"Not imported: {rest['count']} of {name}. {rest['reason']}")
    for row in refused["rows"]:
        render.failure(f"{row['table']} {row['id']}: {row['reason']}")
    if refused["count"]:
        render.failure(f"{refused['count']} rows were refused.")
    else:
        render.success("Nothing was written." if answer["dry_run"] else "The import is complete.")


def show_imported_events(
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only events of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, max=1_000_000, help="Skip this many events.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List audit events that were imported from kneo-serv, newest first.

    Example: kneo maintenance imported-events --limit 20
    """
    with closing(find_store(from_env())) as store, store.read() as tx:
        events = list_imported_events(tx, run_id=run_id, limit=limit, offset=offset)
    rows = [[one["at"], one["event_type"], one["actor"], one["run_id"]] for one in events]
    answer = {"events": list(events), "count": len(events)}
    render.emit(answer, as_json=as_json, text=lambda: render.table("", ["Time", "Event", "Actor", "Run"], rows))
