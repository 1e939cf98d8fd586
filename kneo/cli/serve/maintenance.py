"""``kneo maintenance``: due deadlines, retention, backup and restore."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from kneo.cli import render
from kneo.cli.compose import find_store, make_store
from kneo.cli.options import JsonOption
from kneo.maintenance import adopt, backup, import_published, make_retention, migrate, restore, vacuum
from kneo.runtime.engine.timers import end_overdue_runs
from kneo.settings import from_env
from kneo.store.published.importer import list_imported_events
from kneo.tasks.lifecycle import process_due
from kneo.trust.keys import PrivateKey

app = typer.Typer(no_args_is_help=True)


@app.command("prune")
def prune(as_json: JsonOption = False) -> None:
    """Process expired deadlines of tasks and runs, and delete old data.

    A running service does both on its own.

    Example: kneo maintenance prune --json
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
    """Process due deadlines, reminders and escalations of human tasks in the local database."""
    store = make_store(from_env())
    try:
        answer: dict[str, object] = {"handled": process_due(store)}
    finally:
        store.close()
    render.emit(answer, as_json=as_json, text=lambda: render.text(f"Processed {answer['handled']} due tasks."))


@app.command("backup")
def back_up(
    destination: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Back up the database into one SQLite file, while it is in use.

    Example: kneo maintenance backup kneo-backup.sqlite
    """
    with closing(find_store(from_env())) as store:
        answer = backup(store, destination)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Backed up to {destination}."))


@app.command("restore")
def restore_backup(
    source: Annotated[Path, typer.Argument(metavar="FILE")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing SQLite database.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty database of either kind, or in place of a SQLite database.

    Stop all processes that use the database first.

    Example: kneo maintenance restore kneo-backup.sqlite --replace
    """
    answer = restore(from_env(), source, replace=replace)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Restored from {source}."))


@app.command("migrate")
def migrate_schema(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be changed, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create or migrate the schema of the database, for processes with KNEO_SERV_MIGRATE=never.

    Example: kneo maintenance migrate --dry-run
    """
    answer = migrate(from_env(), dry_run=dry_run)
    render.emit(answer, as_json=as_json, text=lambda: _show_migration(answer, dry_run=dry_run))


def _show_migration(answer: dict[str, object], *, dry_run: bool) -> None:
    before, after, revisions = answer["from"], answer["to"], answer["migrations"]
    if before == after:
        render.success(f"The database has schema {after}; nothing to migrate.")
        return
    assert isinstance(revisions, dict)
    for revision, change in revisions.items():
        render.text(f"{revision}  {change}")
    done = "Would migrate" if dry_run else "Migrated"
    render.success(f"{done} the database from {before or 'empty'} to {after}.")
    render.text(f"Processes of versions before schema {answer['compatible_from']} cannot open it afterwards.")


@app.command("import")
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
    answer = import_published(from_env(), source, actor=getpass.getuser(), dry_run=dry_run, progress=_show_progress())
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


@app.command("imported-events")
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


@app.command("adopt")
def adopt_records(
    former_keys: Annotated[
        list[Path] | None,
        typer.Option("--former-key", metavar="FILE", help="Adopt only what this former service key authenticates."),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Adopt records with another code as they are, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be adopted, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Authenticate records that an earlier version of Kneo wrote, or another service key authenticates.

    Verify the audit log first: what you adopt counts as written by Kneo. Browsers sign in again.

    Example: kneo maintenance adopt --dry-run
    """
    settings = from_env()
    keys = [PrivateKey.load(path.read_bytes(), settings.key_passphrase or None) for path in former_keys or ()]
    with closing(find_store(settings)) as store:
        answer = adopt(store, actor=getpass.getuser(), former_keys=keys, changed=changed, dry_run=dry_run)
    render.emit(answer, as_json=as_json, text=lambda: _show_adoption(answer))
    if answer["refused"]:
        raise typer.Exit(1)


STATES = ("authentic", "without", "changed", "other_key", "adopted")


def _show_adoption(answer: Mapping[str, Any]) -> None:
    rows = [(name, *(counts.get(state, 0) for state in STATES)) for name, counts in answer["tables"].items()]
    head = "Would be adopted" if answer["dry_run"] else "Adopted"
    render.table("", ["", "Authentic", "No code", "Other code", "Code of another key", head], rows)
    for why in answer["refused"]:
        render.failure(f"Not adopted: {why}")
    left = sum(
        counts.get("without", 0) + counts.get("changed", 0) + counts.get("other_key", 0) - counts["adopted"]
        for counts in answer["tables"].values()
    )
    if left:
        render.warning(f"{left} records stay without a valid code, and are refused. See --changed and --former-key.")


@app.command("vacuum")
def reclaim_space(as_json: JsonOption = False) -> None:
    """Reclaim the disk space of deleted data.

    Example: kneo maintenance vacuum
    """
    with closing(find_store(from_env())) as store:
        answer = vacuum(store)
    lines = [(name, f"{count}") for name, count in answer.items()]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Vacuumed", lines))
