"""``kneo maintenance``: deadlines and retention on demand, copies of the database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.compose import find_store, make_store
from cli.connection import JsonOption
from kneo.maintenance import backup, make_retention, restore, vacuum
from kneo.runtime.engine.timers import end_overdue_runs
from kneo.settings import from_env
from kneo.tasks.deadlines import process_due

app = typer.Typer(no_args_is_help=True)


@app.command("prune")
def prune(as_json: JsonOption = False) -> None:
    """Do what is due now: deadlines of tasks and runs, and deleting what has been kept long enough.

    A running service does all of it by itself.
    """
    settings = from_env()
    with closing(make_store(settings)) as store:
        answer: dict[str, object] = {
            "expired_human_tasks": process_due(store),
            "timed_out_runs": end_overdue_runs(store),
            "retention": make_retention(settings, store)().as_json(),
        }
    retained = answer["retention"]
    assert isinstance(retained, dict)
    lines = [(name, f"{count}") for name, count in {**answer, **retained}.items() if name != "retention"]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Pruned", lines))


def prune_tasks(as_json: JsonOption = False) -> None:
    """Bring the deadlines, reminders and escalations of human tasks that are due in the database beside us."""
    store = make_store(from_env())
    try:
        answer: dict[str, object] = {"handled": process_due(store)}
    finally:
        store.close()
    render.emit(answer, as_json=as_json, text=lambda: render.text(f"{answer['handled']} tasks were due."))


@app.command("backup")
def back_up(
    destination: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Copy the database, in use or not, into one SQLite file, whichever kind it is of."""
    with closing(find_store(from_env())) as store:
        answer = backup(store, destination)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Copied to {destination}."))


@app.command("restore")
def bring_back(
    source: Annotated[Path, typer.Argument(metavar="FILE")],
    replace: Annotated[bool, typer.Option("--replace", help="Let the SQLite database that is there go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back, into an empty database of either kind. Refused while any process uses the database."""
    answer = restore(from_env(), source, replace=replace)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Restored from {source}."))


@app.command("vacuum")
def give_back(as_json: JsonOption = False) -> None:
    """Give the space of what was deleted back to the disk."""
    with closing(find_store(from_env())) as store:
        answer = vacuum(store)
    lines = [(name, f"{count}") for name, count in answer.items()]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Vacuumed", lines))
