"""``kneo worker``: a process that executes steps and processes deadlines."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Annotated

import typer

from kneo.cli.compose import process_store
from kneo.cli.embedding import registered_tools, spec_compiler
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import working
from kneo.settings import Settings, from_env
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
    with (
        process_store(settings) as store,
        working(settings, store, concurrency, make_retention(settings, store), registered_tools(settings)),
    ):
        stopping.wait()


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
