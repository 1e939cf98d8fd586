"""``kneo worker``: a process that executes steps and brings deadlines."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Annotated

import typer

from cli.compose import make_store
from cli.embedding import spec_compiler
from cli.serve.tune_gc import settle
from kneo import __version__
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import working
from kneo.settings import Settings, from_env
from kneo.telemetry import configure_logging
from kneo.telemetry.spans import configure_tracing


def worker(
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="How many runs to drive at once.")] = 4,
) -> None:
    """Execute steps, and bring deadlines."""
    settle()
    settings = logged_settings()
    until_told_to_stop(lambda stopping: run_worker(settings, stopping, concurrency))


def run_worker(settings: Settings, stopping: threading.Event, concurrency: int) -> None:
    """A worker and the timers, until told to stop."""
    spec_compiler(settings)  # A platform that cannot be made is found out now, not by a run.
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(configure_tracing(settings.tracing, version=__version__))
        stack.callback(store.close)
        stack.enter_context(working(settings, store, concurrency, make_retention(settings, store)))
        stopping.wait()


def logged_settings() -> Settings:
    """Read the settings, and log from now on as they say."""
    settings = from_env()
    configure_logging(settings.http.log_level)
    return settings


def until_told_to_stop(work: Callable[[threading.Event], None]) -> None:
    """Do something that ends when it sees that a signal has come."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    work(stopping)
