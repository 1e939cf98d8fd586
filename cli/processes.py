"""Putting processes together. Each function is one assembly and reads as the list of its parts."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import uvicorn

from cli.compose import make_starter, make_store
from cli.embedding import spec_compiler
from cli.known_roots import KnownRoots
from cli.liveness import answering
from controller.loop import Controller
from controller.reconcile import Reconciler
from controller.source.mirror import Mirror
from controller.watch import watching
from kneo import __version__
from kneo.digest import Digest
from kneo.errors import Usage
from kneo.maintenance import make_retention
from kneo.runtime.assemble import background, telling, working
from kneo.runtime.worker import Worker
from kneo.service.app import App, create_app, drain
from kneo.settings import Settings
from kneo.store.engine import Store
from kneo.store.service_key import find_service_key
from kneo.telemetry.spans import configure_tracing


@dataclass(frozen=True)
class Repository:
    """Which repository a controller follows, and what it believes first."""

    url: str
    ref: str
    pin: Digest
    interval: timedelta

    @property
    def folder(self) -> Path | None:
        """The repository's folder, when it is one on this machine."""
        path = Path(self.url)
        return path if path.is_dir() else None


def make_controller(settings: Settings, store: Store, repository: Repository) -> Controller:
    mirror = Mirror(repository.url, repository.ref, settings.state_dir / "mirrors")
    key = find_service_key(settings)
    reconciler = Reconciler(
        store,
        mirror,
        repository.pin,
        service_key=key.public if key else None,
        hmac_key=settings.spec_signing_key,
        channels=tuple(settings.notify),
    )
    return Controller(store, reconciler, interval=repository.interval)


def find_repository(settings: Settings, url: str, ref: str, pin: Digest | None, interval: timedelta) -> Repository:
    """Decide which first trust root to believe: the one given, the one configured, or the one made on this machine.

    Raises:
        Usage: nobody said which. The repository itself is never asked.
    """
    location = str(Path(url).resolve()) if Path(url).is_dir() else url
    believed = pin or settings.trust_root
    if believed is None and Path(location).is_dir():
        believed = KnownRoots(settings.known_roots_path).lookup(Path(location))
    if believed is None:
        msg = f"Nobody said which first trust root of {url} to believe."
        hint = "Get its digest from whoever made the repository and pass --trust-root sha256:… once."
        raise Usage(msg, code="trust_root_not_pinned", hint=hint)
    return Repository(location, ref, believed, interval)


def with_repository(settings: Settings, repository: Repository) -> Settings:
    """Let functions that stand beside a local repository's specs be found, and believe its pin everywhere."""
    roots = settings.import_roots
    if repository.folder is not None and repository.folder not in roots:
        roots = (*roots, repository.folder)
    return replace(settings, import_roots=roots, trust_root=repository.pin)


# ---- processes --------------------------------------------------------------------------------------------------


def run_all(
    settings: Settings, repository: Repository | None, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Service, worker, timers and, with a repository, a controller in one process; until it is told to stop."""
    settings = with_repository(settings, repository) if repository else settings
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(configure_tracing(settings.tracing, version=__version__))
        stack.callback(store.close)
        worker = stack.enter_context(
            working(settings, store, Worker.DEFAULT_CONCURRENCY, make_retention(settings, store))
        )
        alive: Callable[[], bool] = _always
        if repository is not None:
            alive = stack.enter_context(following(settings, store, repository)).is_alive
        serve(settings, store, host, port, poke=worker.poke, announce=announce, alive=alive)


def run_service(settings: Settings, host: str, port: int, workers: int, announce: Callable[[str], None]) -> None:
    """The service, with a worker unless ``workers`` is 0."""
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(configure_tracing(settings.tracing, version=__version__))
        stack.callback(store.close)
        poke: Callable[[], None] = _leave_it
        if workers:
            poke = stack.enter_context(working(settings, store, workers, make_retention(settings, store))).poke
        serve(settings, store, host, port, poke=poke, announce=announce)


def run_reloading(settings: Settings, host: str, port: int) -> None:
    """The service with a worker, begun anew whenever a Python file below the project root changes."""
    folders = [str(settings.project_root)]
    app = "kneo.service.app:create_app"
    uvicorn.run(app, factory=True, host=host, port=port, reload=True, reload_dirs=folders, log_level="warning")


def run_controller(settings: Settings, repository: Repository, stopping: threading.Event) -> None:
    """A controller alone, until it is told to stop."""
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        controller = stack.enter_context(following(settings, store, repository))
        stack.enter_context(telling(settings, store))
        if settings.metrics_port:
            stack.enter_context(answering("0.0.0.0", settings.metrics_port, controller.is_alive))  # noqa: S104 - probes
        stopping.wait()


def run_worker(settings: Settings, stopping: threading.Event, concurrency: int) -> None:
    """A worker and the timers, until told to stop."""
    spec_compiler(settings)  # A platform that cannot be made is found out now, not by a run.
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(configure_tracing(settings.tracing, version=__version__))
        stack.callback(store.close)
        stack.enter_context(working(settings, store, concurrency, make_retention(settings, store)))
        stopping.wait()


# ---- parts ------------------------------------------------------------------------------------------------------


def _always() -> bool:
    """Be alive: nothing but the service runs here that could not be."""
    return True


def serve(
    settings: Settings,
    store: Store,
    host: str,
    port: int,
    *,
    poke: Callable[[], None],
    announce: Callable[[str], None],
    alive: Callable[[], bool] = _always,
) -> None:
    """Answer HTTP in this thread until a signal says stop. Port 0 takes a free one; ``announce`` is told which."""
    tools = spec_compiler(settings).tools
    app = create_app(settings, store, make_starter(settings, store), poke=poke, tools=tools, alive=alive)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        announce(f"http://{host}:{listener.getsockname()[1]}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _already_stopping)
        Server(app).run(sockets=[listener])


class Server(uvicorn.Server):
    """A server that answers those who wait before it waits for their answers."""

    def __init__(self, app: App, *, shutdown_seconds: int = 10) -> None:
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=shutdown_seconds)
        )
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain(self.app)
        await super().shutdown(sockets)


@contextlib.contextmanager
def following(settings: Settings, store: Store, repository: Repository) -> Iterator[Controller]:
    """Follow a repository beside whatever else this process does."""
    controller = make_controller(settings, store, repository)
    with contextlib.ExitStack() as stack:
        stack.enter_context(background("controller", controller.run, controller.stop))
        if repository.folder is not None:
            stack.enter_context(watching(repository.folder, controller.poke))
        yield controller


def _already_stopping(_number: int, _frame: object) -> None:
    """Hear the signal that uvicorn raises again when it is done; worker and controller still have to be let finish."""


def _leave_it() -> None:
    """Tell nobody: another process looks for work by itself."""
