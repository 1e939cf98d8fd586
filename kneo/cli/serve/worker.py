"""``kneo worker``: a process that executes steps, its probes and metrics."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated

import typer
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kneo.cli import render
from kneo.cli.compose import process_store, retry_connecting
from kneo.cli.project import registered_tools, spec_compiler
from kneo.cli.serve.listener import Listener
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import LockedWorker, Wrap, unchanged, working
from kneo.settings import Settings, from_env
from kneo.store.engine import Store
from kneo.telemetry import configure_logging, log_unknown_variables


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
        serve_probes = stack.enter_context(bound_probes(settings))
        store = stack.enter_context(process_store(settings))
        worker = stack.enter_context(executing(settings, store, concurrency))
        stack.enter_context(serve_probes(worker.heartbeats.is_alive))
        render.success(f"The worker executes up to {render.count(concurrency, 'run')} at once.")
        stopping.wait()


@contextlib.contextmanager
def executing(settings: Settings, store: Store, concurrency: int, wrap: Wrap = unchanged) -> Iterator[LockedWorker]:
    """Execute steps, process deadlines and delete old data in the background of a block; expose the worker's metrics."""
    retention, tools = make_retention(settings, store), registered_tools(settings)
    with working(settings, store, concurrency, retention, tools, wrap) as worker, measured(worker):
        yield worker


def logged_settings(level: str | None = None) -> Settings:
    """Read the settings, configure logging and log variables that are no settings.

    Args:
        level: The lowest level that is logged; ``None`` takes the setting's.
    """
    settings = from_env()
    configure_logging(level or settings.http.log_level)
    log_unknown_variables()
    return settings


SIGNAL_SECONDS = 1.0
"""The longest time from a signal to its handler."""


class StopEvent(threading.Event):
    """An event that the handler of a signal sets.

    The kernel can deliver a signal to any thread, and to another than the main thread where that was just continued after
    SIGSTOP. Python then runs the handler once the main thread executes something, which one that waits without end never does.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the event, and let handlers of signals run each second."""
        if timeout is not None:
            return super().wait(timeout)
        while not super().wait(SIGNAL_SECONDS):
            pass
        return True


def until_stopped(work: Callable[[threading.Event], None]) -> None:
    """Call ``work`` with an event that SIGTERM and SIGINT set; again while the database accepts no more connections."""
    stopping = StopEvent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    retry_connecting(lambda: work(stopping), stopping.wait)


class WorkerMetrics(Collector):
    """The metrics of one worker."""

    def __init__(self, worker: LockedWorker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        yield GaugeMetricFamily("kneo_worker_slots", "Runs that the worker drives at most.", value=worker.concurrency)
        yield GaugeMetricFamily("kneo_worker_busy_slots", "Runs that the worker drives.", value=worker.busy)
        ages = GaugeMetricFamily(
            "kneo_worker_heartbeat_age_seconds", "Time since the last turn of a loop of the worker.", labels=["loop"]
        )
        for loop, seconds in worker.heartbeats.ages().items():
            ages.add_metric([loop], seconds)
        yield ages


@contextlib.contextmanager
def measured(worker: LockedWorker, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Expose the metrics of a worker while a block runs."""
    metrics = WorkerMetrics(worker)
    registry.register(metrics)
    try:
        yield
    finally:
        registry.unregister(metrics)


ServeProbes = Callable[[Callable[[], bool]], contextlib.AbstractContextManager[object]]
"""Serve probes while a block runs; the argument returns whether the process still works."""


@contextlib.contextmanager
def bound_probes(settings: Settings) -> Iterator[ServeProbes]:
    """Bind ``KNEO_SERV_METRICS_PORT`` for a block, which serves the probes when its parts run; no probes without a port.

    Raises:
        Conflict, Usage: this process cannot listen at the port.
    """
    if not settings.metrics_port:
        yield lambda _is_alive: contextlib.nullcontext()
        return
    # Probes come from other machines.
    listener = Listener("0.0.0.0", settings.metrics_port, host_setting="", port_setting="KNEO_SERV_METRICS_PORT")  # noqa: S104
    with contextlib.closing(listener):
        yield functools.partial(serving_probes, listener)


@contextlib.contextmanager
def serving_probes(listener: Listener, is_alive: Callable[[], bool]) -> Iterator[None]:
    """Serve probes while a block runs."""

    class Probe(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
            elif self.path in {"/livez", "/healthz"}:
                alive = is_alive()
                self._answer(
                    200 if alive else 503,
                    "text/plain",
                    b"ok\n" if alive else b"a loop of this process hangs; see its log\n",
                )
            else:
                self._answer(404, "text/plain", b"/livez or /metrics\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Log nothing: probes repeat every few seconds."""

    server = ThreadingHTTPServer(("", listener.port), Probe, bind_and_activate=False)
    server.socket.close()
    server.socket = listener.listen()
    thread = threading.Thread(target=server.serve_forever, name="liveness")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
