"""``kneo maintenance``: due deadlines, retention, backup and restore."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.compose import find_store, make_store
from kneo.cli.options import JsonOption
from kneo.maintenance import adopt, backup, make_retention, migrate, restore, vacuum
from kneo.runtime.engine.timers import end_overdue_runs
from kneo.settings import from_env, user_name
from kneo.tasks.lifecycle import process_due
from kneo.trust.keys import PrivateKey

app = typer.Typer(no_args_is_help=True)


@app.command("prune")
@examples("kneo maintenance prune --json")
def prune(as_json: JsonOption = False) -> None:
    """Process expired deadlines of tasks and runs, and delete old data.

    A running service does both on its own.
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
@examples("kneo maintenance backup kneo-backup.sqlite")
def back_up(
    destination: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Back up the database into one SQLite file, while it is in use."""
    with closing(find_store(from_env())) as store:
        answer = backup(store, destination)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Backed up to {destination}."))


@app.command("restore")
@examples("kneo maintenance restore kneo-backup.sqlite --replace")
def restore_backup(
    source: Annotated[Path, typer.Argument(metavar="FILE")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing SQLite database.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty database of either kind, or in place of a SQLite database.

    Stop all processes that use the database first.
    """
    answer = restore(from_env(), source, replace=replace)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Restored from {source}."))


@app.command("migrate")
@examples("kneo maintenance migrate --dry-run")
def migrate_schema(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be changed, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create or migrate the schema of the database, for processes with KNEO_SERV_MIGRATE=never."""
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


@app.command("adopt")
@examples("kneo maintenance adopt --dry-run")
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
    """
    settings = from_env()
    keys = [PrivateKey.load(path.read_bytes(), settings.key_passphrase or None) for path in former_keys or ()]
    with closing(find_store(settings)) as store:
        answer = adopt(store, actor=user_name(), former_keys=keys, changed=changed, dry_run=dry_run)
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
@examples("kneo maintenance vacuum")
def reclaim_space(as_json: JsonOption = False) -> None:
    """Reclaim the disk space of deleted data."""
    with closing(find_store(from_env())) as store:
        answer = vacuum(store)
    lines = [(name, f"{count}") for name, count in answer.items()]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Vacuumed", lines))
