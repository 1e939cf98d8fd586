"""Maintenance of an installation: its schema, backups, the adoption of records, and retention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from kneo.clock import Clock, SystemClock
from kneo.errors import Conflict, Invalid
from kneo.project import read_config
from kneo.records.audit import ChainVerdict
from kneo.records.run import RunStatus
from kneo.registry.served import find_contradiction
from kneo.settings import ExecutionSettings, Settings, from_env
from kneo.spec.project import MIN_USAGE_DAYS, Retention
from kneo.store import adoption, audit, project_metadata, prune, releases
from kneo.store import backup as backups
from kneo.store import migrate as migrations
from kneo.store.adoption import Adoption
from kneo.store.engine import Store, Tx
from kneo.store.prepared import Row
from kneo.store.service_key import missing_key
from kneo.trust.keys import PrivateKey
from kneo.trust.record_mac import RecordMacs


class LockAcquisitionError(Conflict):
    """The error when another process decides the same task, or executes steps on the same database."""

    default_code = "resource_locked"


SQLITE = "sqlite:///"


def backup_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Copy a snapshot of a SQLite database that may be in use.

    Raises:
        NotFound: there is no database at ``source``.
        Invalid: the copy is damaged, or ``destination`` is ``source``.
    """
    backups.copy_file(Path(source), Path(destination))
    return _copied(source, destination)


def restore_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Replace a database by a backup, as a whole.

    Raises:
        NotFound: there is no backup at ``source``.
        Invalid: the backup is damaged, written by a newer version, or ``destination`` itself.
        Conflict: ``store_in_use``: a process has the database open.
    """
    backups.restore_file(Path(source), Path(destination), SystemClock())
    return _copied(source, destination)


def backup(store: Store, destination: Path) -> dict[str, object]:
    """Back up a database of either kind into a SQLite file, and record that in the database.

    Returns:
        ``destination``, ``bytes_copied``, and ``audit`` which a restored database must match: ``valid``,
        ``size`` and ``head`` of the chain.

    Raises:
        Invalid: the copy is damaged.
    """
    verdict = backups.back_up(store, destination)
    store.transact(project_metadata.record_backup)
    return {
        "destination": str(destination),
        "bytes_copied": destination.stat().st_size,
        "audit": _chain(verdict),
    }


def restore(settings: Settings, source: Path, *, replace: bool = False) -> dict[str, object]:
    """Restore a backup into the database of these settings: an empty one, or in place of a SQLite file.

    Args:
        settings: The settings with the database.
        source: The backup.
        replace: Whether to replace an existing SQLite file.

    Returns:
        ``source``, and ``audit`` as ``backup`` does.

    Raises:
        NotFound: there is no backup at ``source``.
        Invalid: it is damaged, or written by a newer version.
        Conflict: ``store_in_use``, ``store_not_empty``.
    """
    url, clock = settings.database_url, SystemClock()
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        if path.is_file() and not replace:
            msg = f"The database {path} exists."
            raise Conflict(msg, code="store_not_empty", hint="Pass --replace to replace it by the backup.")
        verdict = backups.restore_file(source, path, clock)
    else:
        with closing(migrations.open_store(url, clock)) as store:
            verdict = backups.restore(source, store)
    return {"source": str(source), "audit": _chain(verdict)}


def migrate(settings: Settings, *, dry_run: bool = False) -> dict[str, object]:
    """Create or migrate the schema of the database of these settings, also where ``KNEO_SERV_MIGRATE`` is ``never``.

    Args:
        settings: The settings with the database.
        dry_run: Whether to return what would be changed instead.

    Returns:
        ``from`` (null for an empty database), ``to``, ``migrations`` by revision, and ``compatible_from``: processes of versions
        before this revision cannot open the database afterwards.

    Raises:
        Invalid: ``schema_too_new``, ``schema_unsupported``, ``store_not_ours``.
    """
    change = migrations.migrate_database(settings.database_url, SystemClock(), dry_run=dry_run)
    return {
        "from": change.version,
        "to": change.version if change.is_empty else migrations.HEAD,
        "migrations": dict(change.revisions),
        "compatible_from": change.compatible_from,
    }


def adopt(
    store: Store, *, actor: str, former_keys: Sequence[PrivateKey] = (), changed: bool = False, dry_run: bool = False
) -> dict[str, object]:
    """Authenticate records that have no valid message authentication code of the service key, at the word of an operator.

    A promotion that the audit log contradicts is not adopted. Sessions of browsers and audit events are never adopted.

    Args:
        store: The database.
        actor: The name for the audit log.
        former_keys: Former service keys: only records that one of them authenticates are adopted.
        changed: Whether records with another code are adopted too, as they are.
        dry_run: Whether to count alone.

    Returns:
        ``tables``: ``authentic``, ``without``, ``changed``, ``other_key`` and ``adopted`` of each table; ``refused``.

    Raises:
        Invalid: ``no_service_key``.
    """
    if store.find_key() is None:
        raise missing_key()

    former = [RecordMacs(partial(_itself, key)) for key in former_keys]
    order = Adoption(former=former, changed=changed, contradicts=_contradicts, dry_run=dry_run)
    reports = adoption.adopt(store, order)
    counts = {name: {**report.found, "adopted": report.adopted} for name, report in reports.items() if report.found}
    refused = [why for report in reports.values() for why in report.refused]
    if not dry_run:
        facts = {"adopted": {name: report.adopted for name, report in reports.items() if report.adopted}}
        how = {"former_keys": [key.keyid for key in former_keys], "changed": changed, "refused": len(refused)}
        store.transact(lambda tx: audit.record(tx, audit.ADOPTED, actor=actor, metadata={**facts, **how}))
    return {"dry_run": dry_run, "tables": counts, "refused": refused}


def _itself(key: PrivateKey) -> PrivateKey:
    return key


def _contradicts(tx: Tx, table: str, row: Row) -> str | None:
    """Return how the audit log contradicts a row; ``None`` where it does not, or does not know of it."""
    return find_contradiction(tx, releases.read_promotion(row)) if table == "promotions" else None


def vacuum(store: Store) -> dict[str, int]:
    """Reclaim unused space; return ``bytes_before`` and ``bytes_after``."""
    before, after = backups.vacuum(store)
    return {"bytes_before": before, "bytes_after": after}


def _chain(verdict: ChainVerdict) -> dict[str, object]:
    return {"valid": verdict.valid, "size": verdict.size, "head": verdict.head}


def _copied(source: str | Path, destination: str | Path) -> dict[str, object]:
    size = Path(destination).stat().st_size
    return {"source": str(source), "destination": str(destination), "bytes_copied": size}


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Retention in days for each kind of data; ``None`` keeps it forever."""

    runs_days: int | None = None
    calls_days: int | None = None
    """Of calls of other programs without a decision."""
    checkpoints_days: int | None = None
    queue_days: int | None = None
    continuations_days: int | None = None
    sessions_days: int | None = None
    artifacts_days: int | None = None
    logs_days: int | None = None
    idempotency_days: int | None = None
    usage_days: int | None = None
    run_statuses: tuple[RunStatus, ...] = prune.FINAL
    """The statuses of runs to delete; a run that has not ended is never deleted."""

    @classmethod
    def from_project_and_env(
        cls, project: Retention | None = None, env: Mapping[str, str] | None = None
    ) -> RetentionPolicy:
        """Read the policy: environment variables take precedence over the project's config.

        Raises:
            Invalid: a variable has an invalid value.
        """
        return cls.from_settings(from_env(env).execution, project)

    @classmethod
    def from_settings(cls, execution: ExecutionSettings, project: Retention | None = None) -> RetentionPolicy:
        """Combine the settings of the process and the project."""
        declared = project.model_dump() if project is not None else {}
        names = [each.name for each in fields(cls) if each.name.endswith("_days")]
        days = {name: execution.retention_days.get(name.removesuffix("_days"), declared.get(name)) for name in names}
        if days["usage_days"] is not None and days["usage_days"] < MIN_USAGE_DAYS:
            msg = f"KNEO_SERV_RETENTION_USAGE_DAYS is {days['usage_days']}; a budget per month needs {MIN_USAGE_DAYS}."
            raise Invalid(msg, code="invalid_setting")
        chosen = tuple(RunStatus(word) for word in execution.retention_run_statuses)
        return cls(**days, run_statuses=chosen or prune.FINAL)

    @property
    def keeps_everything(self) -> bool:
        return all(getattr(self, field.name) is None for field in fields(self) if field.name.endswith("_days"))


@dataclass(frozen=True, kw_only=True)
class RetentionReport:
    """The numbers of deleted rows and files."""

    runs: int = 0
    checkpoints: int = 0
    queue_records: int = 0
    continuations: int = 0
    sessions: int = 0
    artifacts: int = 0
    logs: int = 0
    audit_events: int = 0
    """Always 0: audit events are never deleted."""
    idempotency_records: int = 0
    usage_rows: int = 0

    def as_json(self) -> dict[str, int]:
        return asdict(self)


class RetentionManager:
    """Deletes data older than the retention policy.

    Args:
        store: The database.
        artifacts: The folder of artifacts; files are deleted by age.
        logs: The folder of logs, likewise.
    """

    def __init__(self, store: Store, *, artifacts: Path | None = None, logs: Path | None = None) -> None:
        self.store = store
        self.artifacts = artifacts
        self.logs = logs

    def prune(self, policy: RetentionPolicy, go_on: Callable[[], bool] = prune.always) -> RetentionReport:
        """Delete data older than the policy, in batches; safe while the database is in use, and safe to interrupt.

        Args:
            policy: The retention of each kind of data.
            go_on: Called before each batch; false ends the deletion.
        """
        report: dict[str, int] = {}
        if policy.calls_days is not None:
            report["runs"] = prune.prune_calls(self.store, timedelta(days=policy.calls_days), go_on=go_on)
        if policy.runs_days is not None:
            retention = timedelta(days=policy.runs_days)
            deleted = prune.prune_runs(self.store, retention, policy.run_statuses, go_on=go_on)
            report["runs"] = report.get("runs", 0) + deleted
            prune.prune_specs(self.store, retention, go_on=go_on)
        for name, days, delete in (
            ("checkpoints", policy.checkpoints_days, prune.prune_checkpoints),
            ("continuations", policy.continuations_days, prune.prune_tasks),
            ("sessions", policy.sessions_days, prune.prune_sessions),
            ("idempotency_records", policy.idempotency_days, prune.prune_idempotency_keys),
            ("usage_rows", policy.usage_days, prune.prune_usage),
        ):
            if days is not None:
                report[name] = delete(self.store, timedelta(days=days), go_on=go_on)
        clock = self.store.clock
        report["artifacts"] = _prune_files(self.artifacts, policy.artifacts_days, clock)
        report["logs"] = _prune_files(self.logs, policy.logs_days, clock)
        return RetentionReport(**report)


def _prune_files(folder: Path | None, days: int | None, clock: Clock) -> int:
    if folder is None or days is None or not folder.is_dir():
        return 0
    before = (clock.now() - timedelta(days=days)).timestamp()
    old: Sequence[Path] = [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_mtime < before
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


IDEMPOTENCY_DAYS = 7
"""The default retention of idempotency keys in days."""


class Retain(Protocol):
    """Deletes old data until ``go_on`` returns false."""

    def __call__(self, go_on: Callable[[], bool] = prune.always) -> RetentionReport: ...


def make_retention(settings: Settings, store: Store) -> Retain:
    """Return a function that applies the retention policy of the project and this process."""
    project = read_config(settings)
    policy = RetentionPolicy.from_settings(settings.execution, project.retention if project else None)
    choices = (settings.http.idempotency_days, policy.idempotency_days, IDEMPOTENCY_DAYS)
    policy = replace(
        policy,
        idempotency_days=next(days for days in choices if days is not None),
        calls_days=settings.execution.call_days,
    )
    local = project.local if project else None
    manager = RetentionManager(
        store,
        artifacts=_own_folder(settings, local.artifact_path) if local else None,
        logs=_own_folder(settings, local.log_path) if local else None,
    )
    return partial(manager.prune, policy)


def _own_folder(settings: Settings, path: str) -> Path | None:
    """Return a folder whose old files may be deleted; None for one that contains the project."""
    folder = (settings.project_root / path).resolve()
    return None if settings.project_root.resolve().is_relative_to(folder) else folder
