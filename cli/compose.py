"""Putting the runtime together: a database, what starts runs on it, what drives them. No HTTP, no Git."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cli.specs import check_spec
from kneo.clock import SystemClock
from kneo.errors import NotFound
from kneo.maintenance import RetentionManager, RetentionPolicy, RetentionReport
from kneo.project import read_config
from kneo.runtime.advance import Driver
from kneo.runtime.code import CodeLoader
from kneo.runtime.load import ProgramLoader
from kneo.runtime.start import Starter
from kneo.runtime.steps import Executor
from kneo.runtime.worker import Worker
from kneo.settings import Settings
from kneo.store.engine import Store
from kneo.store.history import CheckpointLimits
from kneo.store.migrate import open_store

WORKER_LOCK = "worker"
"""Held by the one process that executes steps on a database."""


def make_store(settings: Settings) -> Store:
    """Open the database and bring it up to date."""
    return open_store(settings.database_url, SystemClock())


def find_store(settings: Settings) -> Store:
    """Open a database that is there already.

    Raises:
        NotFound: there is none; whoever looks for proof must not be shown a new, empty one.
    """
    path = settings.database_url.removeprefix("sqlite:///")
    if path != settings.database_url and not Path(path).is_file():
        msg = f"There is no database at {path}."
        hint = "Work where kneo up runs, set KNEO_SERV_DATABASE_URL, or ask a service with --service-url."
        raise NotFound(msg, code="no_database", hint=hint)
    return make_store(settings)


def make_starter(settings: Settings, store: Store) -> Starter:
    return Starter(
        store,
        check_spec,
        pin=settings.trust_root,
        max_queue=settings.execution.max_queue_depth,
        project=read_config(settings),
    )


class Works(Protocol):
    """Something that executes steps until it is told to stop."""

    def run(self) -> None: ...

    def poke(self) -> None: ...

    def stop(self) -> None: ...


def make_worker(settings: Settings, store: Store, concurrency: int) -> Works:
    """Make what executes steps here: alone on a SQLite file, one of many on PostgreSQL."""
    driver = make_driver(settings, store)
    if store.is_sqlite:
        return Worker(store, driver, concurrency=concurrency)
    # A quarter of a second to import, and needed on PostgreSQL only.
    module = importlib.import_module("kneo.runtime.dispatch.postgres")
    worker: Works = module.QueueWorker(store, driver, concurrency=concurrency)
    return worker


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


def make_driver(settings: Settings, store: Store) -> Driver:
    code = CodeLoader(settings.import_roots, settings.import_allow)
    execution = settings.execution
    limits = CheckpointLimits(
        compress_bytes=execution.checkpoint_compress_bytes,
        max_bytes=execution.checkpoint_max_bytes,
        preview_chars=execution.checkpoint_preview_chars,
    )
    return Driver(store, ProgramLoader(store), Executor(code), limits)
