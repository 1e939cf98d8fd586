"""Recorded exchanges with real providers, played back on loopback, so that the scripted server is checked against the real ones.

``KNEO_TEST_RECORD=1`` puts a proxy between the provider's library and the provider and writes ``tests/cassettes/NAME.json``;
without it the file is played back. A file has the digests of the requests and the replies, and no header but a few of the reply.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

CASSETTES = Path(__file__).parents[1] / "cassettes"
KEPT = frozenset({"content-type", "retry-after", "x-should-retry"})
"""The headers of replies that are kept; those of requests are not, because they hold keys."""
IDS = frozenset({"id", "call_id", "tool_call_id", "tool_use_id", "thoughtSignature"})
SENT = frozenset({"accept", "anthropic-version", "authorization", "content-type", "x-api-key", "x-goog-api-key"})


@dataclass(frozen=True)
class Exchange:
    """One request, by its digest, and its reply."""

    digest: str
    status: int
    headers: Mapping[str, str]
    body: str


def digest_of(method: str, path: str, body: bytes) -> str:
    """Return the digest of a request; ids, which differ from time to time, are left out."""
    content = json.dumps(_without_ids(json.loads(body)), sort_keys=True) if body else ""
    return hashlib.sha256(f"{method} {path} {content}".encode()).hexdigest()


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(each) for key, each in value.items() if key not in IDS}
    return [_without_ids(each) for each in value] if isinstance(value, list) else value


@contextmanager
def recording(upstream: str, file: Path) -> Iterator[str]:
    """Yield the address of a proxy that forwards to ``upstream``; write what passed to a file at the end."""
    exchanges: list[Exchange] = []

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        sent = {name: value for name, value in headers.items() if name.lower() in SENT}
        reply = httpx.request(method, f"{upstream.rstrip('/')}{path}", headers=sent, content=body, timeout=300)
        kept = {name: value for name, value in reply.headers.items() if name in KEPT}
        exchanges.append(Exchange(digest_of(method, path, body), reply.status_code, kept, reply.text))
        return exchanges[-1]

    with _served(answer) as url:
        yield url
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([asdict(each) for each in exchanges], indent=1) + "\n")


@contextmanager
def playing(file: Path) -> Iterator[str]:
    """Yield the address of a server that answers as recorded; a request that was not recorded is refused."""
    left = [Exchange(**each) for each in json.loads(file.read_text())]

    def answer(method: str, path: str, _headers: Mapping[str, str], body: bytes) -> Exchange:
        digest = digest_of(method, path, body)
        for number, each in enumerate(left):
            if each.digest == digest:
                return left.pop(number)
        problem = json.dumps({"error": {"message": f"Not recorded: {method} {path} {body[:500]!r}"}})
        return Exchange(digest, 400, {"content-type": "application/json"}, problem)

    with _served(answer) as url:
        yield url
    assert left == [], f"{len(left)} recorded exchanges were not asked for"


@contextmanager
def _served(answer: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            exchange = answer("POST", self.path, dict(self.headers), body)
            data = exchange.body.encode()
            self.send_response(exchange.status)
            for name, value in exchange.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
