"""The objects that commands and processes share: the database, and the starter of runs on it. No HTTP, no Git."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kneo import __version__
from kneo.clock import SystemClock
from kneo.errors import NotFound, Transient
from kneo.settings import Settings
from kneo.store.engine import TOO_MANY_CONNECTIONS, WORKER_LOCK, Store
from kneo.store.migrate import open_store
from kneo.telemetry import configure_tracing
from kneo.trust.sealing import DataKeys

if TYPE_CHECKING:
    from kneo.runtime.engine.start import Starter
    from kneo.trust.keys import PrivateKey


log = logging.getLogger("kneo.store")

CONNECT_SECONDS = 1.0
"""The pause before a process connects again to a database that accepts no more connections."""


def make_store(settings: Settings) -> Store:
    """Open the database, and migrate it to the current schema unless ``KNEO_SERV_MIGRATE`` is ``never``."""

    def find_key() -> PrivateKey | None:
        from kneo.store.service_key import find_service_key  # imports cryptography, which most commands do not need

        return find_service_key(settings)

    keys = DataKeys.read(settings.data_keys)
    migrates, checks = settings.migrate == "auto", settings.record_macs == "check"
    return open_store(settings.database_url, SystemClock(), find_key, keys, migrates=migrates, checks_macs=checks)


def retry_connecting(work: Callable[[], None], wait: Callable[[float], object]) -> None:
    """Do the work of a long-running process; begin it again while the database accepts no more connections.

    Args:
        work: The work.
        wait: Waits this many seconds; true where the process is to stop.

    Raises:
        Transient: the database accepts no connection, and the process is to stop.
    """
    while True:
        try:
            return work()
        except Transient as error:
            if error.code != TOO_MANY_CONNECTIONS or wait(CONNECT_SECONDS):
                raise
            log.warning("%s", error)


@contextlib.contextmanager
def process_store(settings: Settings) -> Iterator[Store]:
    """Yield the database of a long-running process, with tracing configured; close both at the end.

    Raises:
        Invalid: ``no_service_key``: the records of this process would carry no authentication.
    """
    from kneo.store.service_key import service_key

    service_key(settings)
    with configure_tracing(settings.tracing, version=__version__), contextlib.closing(make_store(settings)) as store:
        yield store


def find_store(settings: Settings) -> Store:
    """Open an existing database.

    Raises:
        NotFound: no database exists; a new, empty one would prove nothing.
    """
    path = settings.database_url.removeprefix("sqlite:///")
    if path != settings.database_url and not Path(path).is_file():
        msg = f"There is no database at {path}."
        hint = "Change to the folder where kneo up runs, set KNEO_SERV_DATABASE_URL, or pass --service-url."
        raise NotFound(msg, code="no_database", hint=hint)
    return make_store(settings)


def make_starter(settings: Settings, store: Store, *, executes: Callable[[], bool]) -> Starter:
    """Return the starter of runs. The runtime is imported here, because most commands start no run.

    Args:
        settings: The settings of this process.
        store: The database.
        executes: Whether this process executes the runs that it starts, so that it needs the keys of their models.
    """
    from kneo.agents.providers import OperatorConnections
    from kneo.agents.sandboxes import SandboxHost
    from kneo.cli.project import spec_compiler
    from kneo.project import read_config
    from kneo.runtime.engine.start import Starter

    project = read_config(settings)
    return Starter(
        store,
        spec_compiler(settings).compile,
        pin=settings.trust_root,
        hmac_key=settings.spec_signing_key,
        max_queue=settings.execution.max_queue_depth,
        project=project,
        operator=lambda: OperatorConnections.of(settings, project) if executes() else None,
        host=SandboxHost.of(settings),
    )


def executes_runs(store: Store) -> bool:
    """Tell whether a run that this command starts is executed by the command itself: no worker has the database."""
    with store.exclusive(WORKER_LOCK) as lock:
        return bool(lock)
