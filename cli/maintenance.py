"""``kneo maintenance``: deadlines and retention on demand, copies of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.compose import make_store
from cli.connection import JsonOption
from kneo.errors import Usage
from kneo.maintenance import backup_sqlite_database, make_retention, restore_sqlite_database
from kneo.runtime.timers import end_overdue_runs
from kneo.settings import from_env
from kneo.tasks.sweep import expire_due

app = typer.Typer(help="Keep an installation healthy.", no_args_is_help=True)


@app.command("prune")
def prune(as_json: JsonOption = False) -> None:
    """Do what is due now: deadlines of tasks and runs, and deleting what has been kept long enough.

    A running service does all of it by itself.
    """
    settings = from_env()
    store = make_store(settings)
    try:
        answer: dict[str, object] = {
            "expired_human_tasks": expire_due(store),
            "timed_out_runs": end_overdue_runs(store),
            "retention": make_retention(settings, store)().as_json(),
        }
    finally:
        store.close()
    retained = answer["retention"]
    assert isinstance(retained, dict)
    lines = [(name, f"{count}") for name, count in {**answer, **retained}.items() if name != "retention"]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Pruned", lines))


@app.command("backup")
def backup(
    destination: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Copy this project's SQLite database, in use or not."""
    answer = backup_sqlite_database(_database(), destination)
    render.emit(answer, as_json=as_json, text=lambda: render.text(f"Copied to {destination}."))


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of this project's SQLite database. Stop everything that uses it first."""
    answer = restore_sqlite_database(source, _database())
    render.emit(answer, as_json=as_json, text=lambda: render.text(f"Restored from {source}."))


def _database() -> Path:
    url = from_env().database_url
    if not url.startswith("sqlite:///"):
        msg = "This project's database is PostgreSQL, which brings its own tools."
        raise Usage(msg, hint="pg_dump and pg_restore.")
    return Path(url.removeprefix("sqlite:///"))
