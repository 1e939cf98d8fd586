"""``kneo worker``: a process that executes steps and processes deadlines."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from kneo.cli.compose import process_store
from kneo.cli.embedding import registered_tools, spec_compiler
from kneo.cli.serve.liveness import open_probes
from kneo.cli.serve.worker_metrics import measured
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import LockedWorker, working
from kneo.settings import Settings, from_env
from kneo.store.engine import Store
from kneo.telemetry import configure_logging


def worker(
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Runs to execute at once.")] = 4,
) -> None:
    """Run a worker that executes steps and processes deadlines."""
    settings = logged_settings()
    until_stopped(lambda stopping: run_worker(settings, stopping, concurrency))


def run_worker(settings: Settings, stopping: threading.Event, concurrency: int) -> None:
    """Run a worker and the timers until a signal stops the process."""
    spec_compiler(settings)  # A platform that fails to load stops the worker now, not a run later.
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(process_store(settings))
        worker = stack.enter_context(executing(settings, store, concurrency))
        stack.enter_context(open_probes(settings, worker.heartbeats.is_alive))
        stopping.wait()


@contextlib.contextmanager
def executing(settings: Settings, store: Store, concurrency: int) -> Iterator[LockedWorker]:
    """Execute steps, process deadlines and delete old data in the background of a block; expose the worker's metrics."""
    retention, tools = make_retention(settings, store), registered_tools(settings)
    with working(settings, store, concurrency, retention, tools) as worker, measured(worker):
        yield worker


def logged_settings() -> Settings:
    """Read the settings and configure logging."""
    settings = from_env()
    configure_logging(settings.http.log_level)
    return settings


def until_stopped(work: Callable[[threading.Event], None]) -> None:
    """Call ``work`` with an event that SIGTERM and SIGINT set."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    work(stopping)
