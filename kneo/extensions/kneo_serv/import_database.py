"""The import of the history in a database of kneo-serv into the database of an installation."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from kneo.clock import SystemClock, isoformat
from kneo.errors import Invalid
from kneo.extensions.kneo_serv import importer
from kneo.extensions.kneo_serv.conversion import UnusableRow, parse_object
from kneo.extensions.kneo_serv.source import PublishedDatabase, open_published
from kneo.maintenance import SQLITE
from kneo.names import check_environment_name
from kneo.registry.resolve import change_policy
from kneo.settings import Settings
from kneo.spec.policy import PolicyFlags
from kneo.store import migrate as migrations
from kneo.store import project_metadata
from kneo.store.engine import Store, Tx
from kneo.store.service_key import find_service_key

MAX_POLICIES = 1_000
"""Environments whose policies are imported."""


def import_published(
    settings: Settings,
    location: str,
    *,
    actor: str,
    dry_run: bool = False,
    progress: importer.Progress = importer.no_progress,
) -> dict[str, object]:
    """Import the history in a database of the published platform into the database of these settings.

    Runs keep their ids and never continue. Nothing that this installation has is changed, and an import that was interrupted
    continues when it is started again.

    Args:
        settings: The settings with the database.
        location: The path of a SQLite file, or a URL of PostgreSQL.
        actor: The name for the audit log.
        dry_run: Whether to count alone; nothing is written, and no database is created.
        progress: Called after each batch with how many of how many runs were read.

    Returns:
        The counts of what was found, imported, present before, refused, and has no place; see ``docs/moving/kneo-serv.md``.

    Raises:
        NotFound: there is no such file.
        Invalid: ``import_unsupported``, ``import_unreadable``; or as in ``open_store``.
        Transient: one of the databases cannot be reached.
    """
    clock = SystemClock()
    with ExitStack() as stack:
        published = stack.enter_context(open_published(location))
        path = Path(settings.database_url.removeprefix(SQLITE))
        is_new = settings.database_url.startswith(SQLITE) and not path.is_file()
        if dry_run and is_new:
            store = None
        else:
            migrates = settings.migrate == "auto" and not dry_run
            store = migrations.open_store(
                settings.database_url, clock, partial(find_service_key, settings), migrates=migrates
            )
            stack.callback(store.close)
        now = isoformat(clock.now())
        report = importer.import_history(published, store, actor=actor, now=now, dry_run=dry_run, progress=progress)
        policies = _import_policies(published, store, report, actor=actor, dry_run=dry_run)
    return {
        "source": {"kind": published.kind, "schema": published.schema, "id": published.id},
        "dry_run": dry_run,
        "found": dict(report.found),
        "imported": {**report.imported, "policies": policies},
        "present": report.present,
        "ended": {"count": report.ended_count, "runs": report.ended},
        "refused": {"count": report.refused_count, "rows": report.refused},
        "not_imported": report.not_imported(),
        "audit_log_digest": report.audit_log_digest,
    }


def _import_policies(
    source: PublishedDatabase, store: Store | None, report: importer.ImportReport, *, actor: str, dry_run: bool
) -> int:
    """Set the policies of environments that have none here; return how many."""
    text = source.project_value(project_metadata.POLICIES)
    if text is None:
        return 0
    count = 0
    try:
        declared = parse_object(text)
    except UnusableRow as error:
        report.refuse("project_metadata", project_metadata.POLICIES, error.message)
        return 0
    for name, value in list(declared.items())[:MAX_POLICIES]:
        try:
            check_environment_name(name)
            flags = PolicyFlags.model_validate(value)
        except (Invalid, ValidationError):
            report.refuse("project_metadata", name, "Its policy, or the name of its environment, is not valid here.")
            continue
        if store is None or dry_run:
            with ExitStack() as stack:
                tx = stack.enter_context(store.read()) if store is not None else None
                count += tx is None or project_metadata.find_policy(tx, name) is None
        else:
            count += store.transact(partial(_set_policy, name=name, flags=flags, actor=actor))
    return count


def _set_policy(tx: Tx, *, name: str, flags: PolicyFlags, actor: str) -> bool:
    project_metadata.lock(tx, project_metadata.POLICIES)
    if project_metadata.find_policy(tx, name) is not None:
        return False
    change_policy(tx, name, flags, actor=actor)
    return True
