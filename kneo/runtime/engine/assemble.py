"""Assembly of a worker from the settings: its driver, dispatch, timers, retention and notifications.

Libraries of models and MCP servers that releases and runs name are imported in a thread at the start: the first import takes
seconds on a busy machine, and so no run waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import TypeAlias

from kneo import registry
from kneo.agents.function_tools import ToolRegistry
from kneo.agents.sandboxes import SandboxHost
from kneo.background import background
from kneo.clock import monotonic
from kneo.digest import Digest
from kneo.errors import Conflict
from kneo.project import read_config
from kneo.project.secrets import require_provider_secrets
from kneo.runtime.engine.dispatchers import StepWorker, find_dispatcher
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.rules_in_force import RulesInForce
from kneo.runtime.engine.timers import INTERVAL_SECONDS, RetentionJob, run_retention, run_timers
from kneo.runtime.engine.wait import RunSettled, SettledRun, wait_until_settled
from kneo.runtime.engine.worker import Driver, Heartbeats, LockLost, Worker
from kneo.runtime.steps.agents import CLIENTS, LOOP, MakeServices, OpenServices
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import CodeStore
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.sandboxes import Sandboxes
from kneo.sandbox.levels import host_level
from kneo.settings import ExecutionSettings, Settings, hide_settings
from kneo.spec.code import BundleCode
from kneo.spec.models.providers import PROVIDERS
from kneo.store import releases, runs
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.history import CheckpointLimits
from kneo.store.locks import Lock
from kneo.tasks.notifications import deliver_notifications

log = logging.getLogger("kneo.runtime")

DEFAULT_STALL = timedelta(seconds=ExecutionSettings.worker_stall_seconds)


Wrap: TypeAlias = Callable[[MakeServices], MakeServices]
"""Replaces services of agents by others."""


def unchanged(make: MakeServices) -> MakeServices:
    """Return the services of agents as they are."""
    return make


def make_driver(settings: Settings, store: Store, tools: ToolRegistry | None = None, wrap: Wrap = unchanged) -> Driver:
    """Return a driver with the modules and limits that the settings allow, and the tools that the program registered."""
    code = code_loader(settings, store)
    execution = settings.execution
    limits = CheckpointLimits(
        compress_bytes=execution.checkpoint_compress_bytes,
        max_bytes=execution.checkpoint_max_bytes,
        preview_chars=execution.checkpoint_preview_chars,
    )
    sandboxes = open_sandboxes(settings, store, code)
    executor = Executor(code, sandboxes, wrap(services_of(settings, store, code, sandboxes, tools)))
    batch = timedelta(milliseconds=execution.stream_ms)
    return Driver(store, ProgramLoader(store, settings.trust_root), executor, limits, batch)


def code_loader(settings: Settings, store: Store) -> CodeLoader:
    """Return the code of the project, and that of accepted bundles, laid out in the state folder."""

    def read(bundle: Digest) -> BundleCode:
        with store.read() as tx:
            return registry.accepted_code(tx, bundle)

    return CodeLoader(settings.import_roots, settings.import_allow, CodeStore(settings.state_dir / "code", read))


def open_sandboxes(settings: Settings, store: Store, code: CodeLoader) -> Sandboxes:
    """Return the sandboxes of a process."""
    return Sandboxes(
        code,
        RulesInForce(settings, store).read_tools,
        settings.secret,
        SandboxHost.of(settings),
        settings.agents.templates,
    )


def services_of(
    settings: Settings,
    store: Store,
    code: CodeLoader,
    sandboxes: Sandboxes,
    tools: ToolRegistry | None = None,
) -> MakeServices:
    """Return what opens the services of agents, once a step needs them."""

    def open_services() -> OpenServices:
        # Imports HTTP and more, which only agents with a model need.
        module = importlib.import_module("kneo.runtime.engine.agent_services")
        opened: OpenServices = module.open_services(settings, store, code, sandboxes, tools)
        return opened

    return open_services


def make_worker(
    settings: Settings,
    store: Store,
    concurrency: int,
    tools: ToolRegistry | None = None,
    beat: Callable[[], None] = lambda: None,
    wrap: Wrap = unchanged,
) -> StepWorker:
    """Return this process's worker: the only one on a SQLite file, one of many on PostgreSQL.

    Raises:
        Invalid: ``invalid_setting``: the dispatcher of the settings is not installed, or they do not suit it.
        ExtensionFailed: the dispatcher cannot be loaded.
    """
    dispatcher = find_dispatcher(settings, sqlite=store.is_sqlite)
    driver = make_driver(settings, store, tools, wrap)
    if dispatcher is not None:
        return dispatcher.make_worker(settings, store, driver, concurrency=concurrency, beat=beat)
    stall = timedelta(seconds=settings.execution.worker_stall_seconds)
    return worker_on(store, driver, concurrency=concurrency, beat=beat, stall=stall)


def worker_on(
    store: Store,
    driver: Driver,
    *,
    concurrency: int,
    beat: Callable[[], None] = lambda: None,
    stall: timedelta = DEFAULT_STALL,
) -> StepWorker:
    """Return a worker with a driver: the only one on a SQLite file, one of many on PostgreSQL."""
    if store.is_sqlite:
        return Worker(store, driver, concurrency=concurrency, beat=beat)
    # A quarter of a second to import, and needed on PostgreSQL only.
    module = importlib.import_module("kneo.runtime.dispatch.postgres")
    worker: StepWorker = module.QueueWorker(store, driver, concurrency=concurrency, beat=beat, stall=stall)
    return worker


def drive_or_wait(
    settings: Settings, store: Store, run_id: str, timeout_seconds: float, tools: ToolRegistry | None = None
) -> SettledRun:
    """Drive a run until it settles, or wait for the worker of this database to do it.

    Where another process takes the worker lock meanwhile, that process continues the run.

    Raises:
        NotFound: there is no such run.
    """
    with store.exclusive(WORKER_LOCK) as held:
        if held:
            store.transact(runs.clear_owners)
            hide_settings()
            try:
                asyncio.run(make_driver(settings, store, tools).drive_alone(run_id, held))
            except LockLost as error:
                log.warning("%s", error, extra={"run_id": run_id})
    return wait_until_settled(store, RunSettled(run_id), timeout_seconds)


@contextlib.contextmanager
def working(
    settings: Settings,
    store: Store,
    concurrency: int,
    prune: RetentionJob | None = None,
    tools: ToolRegistry | None = None,
    wrap: Wrap = unchanged,
) -> Iterator[LockedWorker]:
    """Run a worker, timers and notifications in the background of a block.

    Args:
        settings: This process's settings.
        store: The database.
        concurrency: Runs that are driven at the same time.
        prune: Deletes expired data.
        tools: The tools that the program registered.
        wrap: Replaces the services of agents.

    Raises:
        Conflict: ``worker_running``; see ``only_worker``.
        Invalid: ``invalid_key``: the service key cannot be read; ``provider_not_configured``: a required key is missing.
    """
    require_provider_secrets(settings, read_config(settings))
    # Checked now: an unreadable key would otherwise stop all due deadlines.
    store.find_key()
    stopping = threading.Event()
    hide_settings()
    with only_worker(store) as lock, contextlib.ExitStack() as stack:
        start_warm_up(store)
        worker = LockedWorker(lock, lambda beat: make_worker(settings, store, concurrency, tools, beat, wrap))
        stack.enter_context(deliver_notifications(settings, store))
        timers = partial(run_timers, store, stopping, worker.heartbeats.timers.beat)
        stack.enter_context(background("timers", timers, stopping.set))
        if prune is not None:
            stack.enter_context(background("retention", lambda: run_retention(store, stopping, prune), stopping.set))
        stack.enter_context(background("worker", worker.run, worker.stop))
        yield worker


class LockedWorker:
    """A worker that executes steps while this process holds the worker lock.

    A lost lock (the server restarted or ended the session) is taken again at once; where another process holds it by then,
    running steps are cancelled and none begins until the lock is free.

    Args:
        lock: The lock, held.
        make: Returns a new worker, which calls its argument at each turn.
    """

    def __init__(self, lock: Lock, make: Callable[[Callable[[], None]], StepWorker]) -> None:
        self.heartbeats = Heartbeats()
        self._lock = lock
        self._make = make
        self._worker = make(self.heartbeats.steps.beat)
        self._turn = threading.Lock()
        self._stopping = threading.Event()

    @property
    def concurrency(self) -> int:
        """The number of runs that the worker drives at most."""
        return self._worker.concurrency

    @property
    def busy(self) -> int:
        """The number of runs that the worker drives."""
        return self._worker.busy

    def run(self) -> None:
        """Work until ``stop``."""
        while True:
            with background("steps", self._worker.run, self._worker.stop):
                while not self._stopping.wait(INTERVAL_SECONDS) and self._keeps_lock():
                    pass
            while not self._stopping.is_set() and not self._lock.renew():
                self.heartbeats.steps.beat()
                self._stopping.wait(INTERVAL_SECONDS)
            with self._turn:
                if self._stopping.is_set():
                    return
                self._worker = self._make(self.heartbeats.steps.beat)
            log.warning("executing steps again")

    def stop(self) -> None:
        """Stop when the running steps have ended."""
        with self._turn:
            self._stopping.set()
        self._worker.stop()

    def _keeps_lock(self) -> bool:
        if self._lock.held():
            return True
        if self._lock.renew():
            log.warning("the worker lock was lost, and taken again")
            return True
        log.warning("the worker lock was lost; no steps are executed until it is taken again")
        return False


@contextlib.contextmanager
def only_worker(store: Store) -> Iterator[Lock]:
    """Hold the worker lock during a block: exclusive on a SQLite file, shared on PostgreSQL.

    Raises:
        Conflict: another process holds it; on PostgreSQL: a command is driving a run of its own.
    """
    with store.shared(WORKER_LOCK, "" if store.is_sqlite else host_level().level) as lock:
        if not lock:
            msg = "Another process executes steps on this database."
            raise Conflict(msg, code="worker_running", hint="Stop it, or use its service: --service-url URL.")
        yield lock


MAX_SPECS = 50
"""Released bundles, and as many specs of runs, that are looked at."""

SERVICES, MCP_SERVERS = "kneo.runtime.engine.agent_services", "kneo.agents.tools.mcp.servers"


def start_warm_up(store: Store) -> threading.Thread | None:
    """Import in a thread what agents of this database need; ``None`` where it has no specs."""
    with store.read() as tx:
        specs = (*releases.released_payloads(tx, MAX_SPECS), *runs.latest_specs(tx, MAX_SPECS))
    if not specs:
        return None
    thread = threading.Thread(target=import_libraries, args=(specs,), name="warm-up", daemon=True)
    thread.start()
    return thread


def import_libraries(specs: Iterable[bytes]) -> None:
    """Import the libraries of providers and MCP servers that specs name, each once. A missing library is no error here:
    the start of a run says so.
    """
    began = monotonic()
    providers, has_mcp = set[str](), False
    for body in specs:
        for name, value in _fields(_tree(body)):
            if name == "provider" and isinstance(value, str) and value in PROVIDERS:
                providers.add(value)
            has_mcp |= name == "mcp_servers" and bool(value)
    if not providers:
        return
    try:
        importlib.import_module(LOOP)
        importlib.import_module(SERVICES)
        importlib.import_module(CLIENTS).warm_up(sorted(providers))
        if has_mcp:
            importlib.import_module(MCP_SERVERS)
    except ImportError as error:
        log.info("libraries of agents are not imported ahead: %s", error)
        return
    log.info(
        "imported the libraries of agents",
        extra={"providers": sorted(providers), "seconds": round(monotonic() - began, 3)},
    )


def _tree(body: bytes) -> object:
    try:
        tree: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return tree


def _fields(tree: object) -> Iterator[tuple[str, object]]:
    """Yield every field of a JSON tree."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield from part.items()
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
