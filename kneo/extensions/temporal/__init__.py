"""Dispatch through a Temporal server."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from kneo.distribution import install_extra
from kneo.errors import Invalid
from kneo.runtime.engine.dispatchers import Dispatcher, StepWorker
from kneo.runtime.engine.worker import Driver
from kneo.settings import Settings
from kneo.store.engine import Store


def check(_settings: Settings, *, sqlite: bool) -> None:
    """Check that runs can be dispatched through Temporal.

    Raises:
        Invalid: ``invalid_setting``: the database is a SQLite file, or the library is not installed.
    """
    if sqlite:
        msg = "KNEO_SERV_DISPATCH is temporal, which hands runs to many processes; a SQLite file has one."
        hint = "Set KNEO_SERV_DATABASE_URL to a PostgreSQL database, or unset KNEO_SERV_DISPATCH."
        raise Invalid(msg, code="invalid_setting", hint=hint)
    if importlib.util.find_spec("temporalio") is None:
        msg = "KNEO_SERV_DISPATCH is temporal, and its library is not installed."
        raise Invalid(msg, code="invalid_setting", hint=install_extra("temporal"))


def make_worker(
    settings: Settings, store: Store, driver: Driver, *, concurrency: int, beat: Callable[[], None]
) -> StepWorker:
    """Return the worker of this process."""
    # Imports the library of Temporal.
    module = importlib.import_module("kneo.extensions.temporal.worker")
    server = module.TemporalServer(settings.execution.temporal_address, settings.execution.temporal_namespace)
    worker: StepWorker = module.TemporalWorker(store, driver, server, concurrency=concurrency, beat=beat)
    return worker


DISPATCHER = Dispatcher(check, make_worker)
