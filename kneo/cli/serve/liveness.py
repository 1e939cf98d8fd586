"""Probes of a process without an API server: ``/livez`` and ``/metrics``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kneo.settings import Settings


def open_probes(settings: Settings, is_alive: Callable[[], bool]) -> contextlib.AbstractContextManager[object]:
    """Serve probes at ``KNEO_SERV_METRICS_PORT`` while a block runs; none without a port."""
    if not settings.metrics_port:
        return contextlib.nullcontext()
    return serving_probes("0.0.0.0", settings.metrics_port, is_alive)  # noqa: S104 - probes come from other machines


@contextlib.contextmanager
def serving_probes(host: str, port: int, is_alive: Callable[[], bool]) -> Iterator[int]:
    """Serve probes while a block runs; yield the port."""

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

    server = ThreadingHTTPServer((host, port), Probe)
    thread = threading.Thread(target=server.serve_forever, name="liveness")
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
