"""How long things are kept. The audit log and receipts are kept for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path

from kneo.clock import Clock
from kneo.project import read_config
from kneo.settings import Execution, Settings, from_env
from kneo.spec.project import Retention
from kneo.state.run import RunStatus
from kneo.store import prune
from kneo.store.engine import Store


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Days to keep each kind of thing; ``None`` keeps it for good."""

    runs_days: int | None = None
    checkpoints_days: int | None = None
    queue_days: int | None = None
    continuations_days: int | None = None
    artifacts_days: int | None = None
    logs_days: int | None = None
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
    def from_settings(cls, execution: Execution, project: Retention | None = None) -> RetentionPolicy:
        """Combine what the process and the project say."""
        declared = project.model_dump() if project is not None else {}
        days = {
            f"{what}_days": execution.retention_days.get(what, declared.get(f"{what}_days"))
            for what in ("runs", "checkpoints", "queue", "continuations", "artifacts", "logs")
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

    def prune(self, policy: RetentionPolicy) -> RetentionReport:
        """Delete what is older than the policy says. Safe beside everything else, and safe to break off."""
        report: dict[str, int] = {}
        if policy.runs_days is not None:
            report["runs"] = prune.prune_runs(self.store, timedelta(days=policy.runs_days), policy.run_statuses)
            prune.prune_specs(self.store, timedelta(days=policy.runs_days))
        if policy.checkpoints_days is not None:
            report["checkpoints"] = prune.prune_checkpoints(self.store, timedelta(days=policy.checkpoints_days))
        if policy.continuations_days is not None:
            report["continuations"] = prune.prune_tasks(self.store, timedelta(days=policy.continuations_days))
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


def make_retention(settings: Settings, store: Store) -> Callable[[], RetentionReport]:
    """Make what deletes, when it is called, what the project and this process say has been kept long enough."""
    project = read_config(settings)
    policy = RetentionPolicy.from_settings(settings.execution, project.retention if project else None)
    local = project.local if project else None
    manager = RetentionManager(
        store,
        artifacts=_own_folder(settings, local.artifact_path) if local else None,
        logs=_own_folder(settings, local.log_path) if local else None,
    )
    return lambda: manager.prune(policy)


def _own_folder(settings: Settings, path: str) -> Path | None:
    """Find a folder whose old files may be deleted: never one that holds the project itself."""
    folder = (settings.project_root / path).resolve()
    return None if settings.project_root.resolve().is_relative_to(folder) else folder
