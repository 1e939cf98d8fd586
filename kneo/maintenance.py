"""Maintenance of an installation: retention, and backups of its database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from kneo.clock import Clock, SystemClock
from kneo.errors import Conflict
from kneo.project import read_config
from kneo.records.audit import ChainVerdict
from kneo.records.run import RunStatus
from kneo.settings import ExecutionSettings, Settings, from_env
from kneo.spec.project import Retention
from kneo.store import backup as backups
from kneo.store import prune
from kneo.store.engine import Store
from kneo.store.migrate import open_store


class LockAcquisitionError(Conflict):
    """Somebody else answers the same task, or executes steps on the same database."""

    default_code = "resource_locked"


SQLITE = "sqlite:///"


def backup_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Copy a database as it is at one moment, whoever writes to it meanwhile.

    Raises:
        NotFound: there is no database at ``source``.
        Invalid: the copy is damaged, or ``destination`` is ``source``.
    """
    backups.copy_file(Path(source), Path(destination))
    return _copied(source, destination)


def restore_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Put a backup in the place of a database, all of it or none.

    Raises:
        NotFound: there is no backup at ``source``.
        Invalid: the backup is damaged, written by a newer version, or ``destination`` itself.
        Conflict: ``store_in_use``: some process has the database open.
    """
    backups.restore_file(Path(source), Path(destination), SystemClock())
    return _copied(source, destination)


def backup(store: Store, destination: Path) -> dict[str, object]:
    """Copy a database of either kind into a SQLite file.

    Returns:
        ``destination``, ``bytes_copied``, and ``audit`` with what a restored database has to show again: ``valid``,
        ``size`` and ``head`` of the chain.

    Raises:
        Invalid: the copy is damaged.
    """
    verdict = backups.back_up(store, destination)
    return {
        "destination": str(destination),
        "bytes_copied": destination.stat().st_size,
        "audit": _chain(verdict),
    }


def restore(settings: Settings, source: Path, *, replace: bool = False) -> dict[str, object]:
    """Bring a backup back into the database of these settings: into an empty one, or in the place of a SQLite file.

    Args:
        settings: Which database is meant.
        source: The backup.
        replace: Whether a SQLite file that is there may go.

    Returns:
        ``source``, and ``audit`` as ``backup`` does.

    Raises:
        NotFound: there is no backup.
        Invalid: it is damaged, or written by a newer version.
        Conflict: ``store_in_use``, ``store_not_empty``.
    """
    url, clock = settings.database_url, SystemClock()
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        if path.is_file() and not replace:
            msg = f"There is a database at {path} already."
            raise Conflict(msg, code="store_not_empty", hint="Say --replace to put the backup in its place.")
        verdict = backups.restore_file(source, path, clock)
    else:
        with closing(open_store(url, clock)) as store:
            verdict = backups.restore(source, store)
    return {"source": str(source), "audit": _chain(verdict)}


def vacuum(store: Store) -> dict[str, int]:
    """Give unused space back; return ``bytes_before`` and ``bytes_after``."""
    before, after = backups.vacuum(store)
    return {"bytes_before": before, "bytes_after": after}


def _chain(verdict: ChainVerdict) -> dict[str, object]:
    return {"valid": verdict.valid, "size": verdict.size, "head": verdict.head}


def _copied(source: str | Path, destination: str | Path) -> dict[str, object]:
    size = Path(destination).stat().st_size
    return {"source": str(source), "destination": str(destination), "bytes_copied": size}


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Days to keep each kind of thing; ``None`` keeps it for good."""

    runs_days: int | None = None
    checkpoints_days: int | None = None
    queue_days: int | None = None
    continuations_days: int | None = None
    artifacts_days: int | None = None
    logs_days: int | None = None
    idempotency_days: int | None = None
    run_statuses: tuple[RunStatus, ...] = prune.FINAL
    """Which runs may be deleted; one that is not over never is."""

    @classmethod
    def from_project_and_env(
        cls, project: Retention | None = None, env: Mapping[str, str] | None = None
    ) -> RetentionPolicy:
        """Read the days: a variable of the environment wins over the project's config.

        Raises:
            Invalid: a variable has a value that makes no sense.
        """
        return cls.from_settings(from_env(env).execution, project)

    @classmethod
    def from_settings(cls, execution: ExecutionSettings, project: Retention | None = None) -> RetentionPolicy:
        """Combine what the process and the project say."""
        declared = project.model_dump() if project is not None else {}
        days = {
            f"{what}_days": execution.retention_days.get(what, declared.get(f"{what}_days"))
            for what in ("runs", "checkpoints", "queue", "continuations", "artifacts", "logs", "idempotency")
        }
        chosen = tuple(RunStatus(word) for word in execution.retention_run_statuses)
        return cls(**days, run_statuses=chosen or prune.FINAL)

    @property
    def keeps_everything(self) -> bool:
        return all(getattr(self, field.name) is None for field in fields(self) if field.name.endswith("_days"))


@dataclass(frozen=True, kw_only=True)
class RetentionReport:
    """How much was deleted."""

    runs: int = 0
    checkpoints: int = 0
    queue_records: int = 0
    continuations: int = 0
    artifacts: int = 0
    logs: int = 0
    audit_events: int = 0
    """Always 0: they are never deleted."""
    idempotency_records: int = 0

    def as_json(self) -> dict[str, int]:
        return asdict(self)


class RetentionManager:
    """Deletes what has been kept long enough.

    Args:
        store: The database.
        artifacts: A folder of artifacts, files of which are deleted by their age.
        logs: A folder of logs, likewise.
    """

    def __init__(self, store: Store, *, artifacts: Path | None = None, logs: Path | None = None) -> None:
        self.store = store
        self.artifacts = artifacts
        self.logs = logs

    def prune(self, policy: RetentionPolicy, go_on: Callable[[], bool] = prune.always) -> RetentionReport:
        """Delete what is older than the policy says. Safe beside everything else, and safe to break off.

        Args:
            policy: How long to keep what.
            go_on: Asked before each batch; once it says no, the rest is left for another time.
        """
        report: dict[str, int] = {}
        if policy.runs_days is not None:
            kept = timedelta(days=policy.runs_days)
            report["runs"] = prune.prune_runs(self.store, kept, policy.run_statuses, go_on=go_on)
            prune.prune_specs(self.store, kept, go_on=go_on)
        for name, days, delete in (
            ("checkpoints", policy.checkpoints_days, prune.prune_checkpoints),
            ("continuations", policy.continuations_days, prune.prune_tasks),
            ("idempotency_records", policy.idempotency_days, prune.prune_idempotency_keys),
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
"""Days for which an idempotency key is remembered where neither the environment nor the project says."""


class Retain(Protocol):
    """Deletes what has been kept long enough, for as long as it may go on."""

    def __call__(self, go_on: Callable[[], bool] = prune.always) -> RetentionReport: ...


def make_retention(settings: Settings, store: Store) -> Retain:
    """Make what deletes, when it is called, what the project and this process say has been kept long enough."""
    project = read_config(settings)
    policy = RetentionPolicy.from_settings(settings.execution, project.retention if project else None)
    said = (settings.http.idempotency_days, policy.idempotency_days, IDEMPOTENCY_DAYS)
    policy = replace(policy, idempotency_days=next(days for days in said if days is not None))
    local = project.local if project else None
    manager = RetentionManager(
        store,
        artifacts=_own_folder(settings, local.artifact_path) if local else None,
        logs=_own_folder(settings, local.log_path) if local else None,
    )
    return partial(manager.prune, policy)


def _own_folder(settings: Settings, path: str) -> Path | None:
    """Find a folder whose old files may be deleted: never one that holds the project itself."""
    folder = (settings.project_root / path).resolve()
    return None if settings.project_root.resolve().is_relative_to(folder) else folder
