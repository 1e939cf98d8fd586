"""Putting together what executes steps on a database, and keeping it going beside whatever else a process does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from kneo.errors import Conflict, Invalid
from kneo.notify.channels import known_channels
from kneo.runtime.engine.driver import Driver, LockLost
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.timers import INTERVAL_SECONDS, RetentionJob, run_retention, run_timers
from kneo.runtime.engine.wait import RunSettled, SettledRun, wait_until_settled
from kneo.runtime.engine.worker import Worker
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.settings import Settings, hide_settings
from kneo.store import runs
from kneo.store.engine import WORKER_LOCK, Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.store.locks import Lock
from kneo.tasks import links

log = logging.getLogger("kneo.runtime")


class StepWorker(Protocol):
    """Something that executes steps until it is told to stop."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


def make_driver(settings: Settings, store: Store) -> Driver:
    """Make what drives runs, with the modules and the limits that the settings allow."""
    code = CodeLoader(settings.import_roots, settings.import_allow)
    execution = settings.execution
    limits = CheckpointLimits(
        compress_bytes=execution.checkpoint_compress_bytes,
        max_bytes=execution.checkpoint_max_bytes,
        preview_chars=execution.checkpoint_preview_chars,
    )
    return Driver(store, ProgramLoader(store), Executor(code), limits)


def make_worker(settings: Settings, store: Store, concurrency: int) -> StepWorker:
    """Make what executes steps here: alone on a SQLite file, one of many on PostgreSQL.

    Raises:
        Invalid: ``invalid_setting``: Temporal is asked for and not installed, or the database is a SQLite file.
    """
    driver = make_driver(settings, store)
    if settings.execution.dispatch == "temporal":
        return _temporal_worker(settings, store, driver, concurrency)
    if store.is_sqlite:
        return Worker(store, driver, concurrency=concurrency)
    # A quarter of a second to import, and needed on PostgreSQL only.
    module = importlib.import_module("kneo.runtime.dispatch.postgres")
    worker: StepWorker = module.QueueWorker(store, driver, concurrency=concurrency)
    return worker


def _temporal_worker(settings: Settings, store: Store, driver: Driver, concurrency: int) -> StepWorker:
    if store.is_sqlite:
        msg = "KNEO_SERV_DISPATCH asks for Temporal, which hands runs to many processes; a SQLite file has one."
        raise Invalid(msg, code="invalid_setting", hint="Set KNEO_SERV_DATABASE_URL to a PostgreSQL database.")
    try:
        module = importlib.import_module("kneo.runtime.dispatch.temporal")
    except ImportError as error:
        msg = "KNEO_SERV_DISPATCH asks for Temporal, and its library is not installed."
        raise Invalid(msg, code="invalid_setting", hint="pip install 'kneo[temporal]'") from error
    execution = settings.execution
    server = module.TemporalServer(execution.temporal_address, execution.temporal_namespace)
    worker: StepWorker = module.TemporalWorker(store, driver, server, concurrency=concurrency)
    return worker


def drive_or_wait(settings: Settings, store: Store, run_id: str, timeout_seconds: float) -> SettledRun:
    """Drive a run to its next pause or end, or wait for the process that executes steps on this database to do it.

    Where another process takes the lock meanwhile, that one goes on with the run.

    Raises:
        NotFound: there is no such run.
    """
    with store.exclusive(WORKER_LOCK) as held:
        if held:
            store.transact(runs.clear_owners)
            hide_settings()
            try:
                asyncio.run(make_driver(settings, store).drive_alone(run_id, held))
            except LockLost as error:
                log.warning("%s", error, extra={"run_id": run_id})
    return wait_until_settled(store, RunSettled(run_id), timeout_seconds)


@contextlib.contextmanager
def working(
    settings: Settings, store: Store, concurrency: int, prune: RetentionJob | None = None
) -> Iterator[StepWorker]:
    """Execute steps and bring deadlines beside whatever else this process does.

    Args:
        settings: This process's settings.
        store: The database.
        concurrency: How many runs to drive at once.
        prune: Deletes what has been kept long enough.

    Raises:
        Conflict: ``worker_running``; see ``only_worker``.
        Invalid: ``invalid_key``: the service key is none.
    """
    # Now rather than at somebody's deadline: there it would stop all others that are due.
    store.find_key()
    stopping = threading.Event()
    hide_settings()
    with only_worker(store) as lock, contextlib.ExitStack() as stack:
        worker = LockedWorker(lock, lambda: make_worker(settings, store, concurrency))
        stack.enter_context(telling(settings, store))
        stack.enter_context(background("timers", lambda: run_timers(store, stopping), stopping.set))
        if prune is not None:
            stack.enter_context(background("retention", lambda: run_retention(store, stopping, prune), stopping.set))
        stack.enter_context(background("worker", worker.run, worker.stop))
        yield worker


class LockedWorker:
    """Executes steps while this process holds the lock of those that do.

    When the lock is lost, because the server restarted or ended the session, it is taken again at once; where somebody else has
    it by then, steps under way are ended and none is begun until it is free.

    Args:
        lock: The lock, held.
        make: Makes what executes steps.
    """

    def __init__(self, lock: Lock, make: Callable[[], StepWorker]) -> None:
        self._lock = lock
        self._make = make
        self._worker = make()
        self._turn = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until ``stop``."""
        while True:
            with background("steps", self._worker.run, self._worker.stop):
                while not self._stopping.wait(INTERVAL_SECONDS) and self._keeps_lock():
                    pass
            while not self._stopping.is_set() and not self._lock.renew():
                self._stopping.wait(INTERVAL_SECONDS)
            with self._turn:
                if self._stopping.is_set():
                    return
                self._worker = self._make()
            log.warning("executing steps again")

    def stop(self) -> None:
        """End when the steps under way have ended."""
        with self._turn:
            self._stopping.set()
        self._worker.stop()

    def _keeps_lock(self) -> bool:
        if self._lock.held():
            return True
        if self._lock.renew():
            log.warning("the lock of those that execute steps was lost, and taken again")
            return True
        log.warning("the lock of those that execute steps was lost; no steps are executed until it is taken again")
        return False


@contextlib.contextmanager
def telling(settings: Settings, store: Store) -> Iterator[None]:
    """Deliver what people are told, where this process knows any channel."""
    if not known_channels(settings):
        yield
        return
    stopping = threading.Event()
    # httpx costs a tenth of a second to import, and many processes have nobody to tell.
    delivery = importlib.import_module("kneo.notify.delivery")
    with background("outbox", lambda: delivery.run_outbox(store, settings, stopping, _token), stopping.set):
        yield


def _token(tx: Tx, task_id: str, person: str) -> str:
    """Make a link for whoever gets a message."""
    _, token = links.make_link(tx, task_id, person, actor="notifications")
    return token


@contextlib.contextmanager
def only_worker(store: Store) -> Iterator[Lock]:
    """Be the one process that executes steps on a SQLite file, or one of those that share a PostgreSQL database.

    Raises:
        Conflict: another process is the one; on PostgreSQL: a command drives a run of its own just now.
    """
    with store.shared(WORKER_LOCK) as lock:
        if not lock:
            msg = "Another process executes steps on this database."
            raise Conflict(msg, code="worker_running", hint="Stop it, or use its service: --service-url URL.")
        yield lock


@contextlib.contextmanager
def background(name: str, work: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread for as long as a block runs, and wait for it to finish what it is doing."""
    # A program that ends without leaving the block must not hang: what is cut short then is what a crash would cut.
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()
