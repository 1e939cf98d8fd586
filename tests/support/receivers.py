"""Somebody to tell: an HTTP server and a mail server, both real, that keep what they are sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: dict[str, object]
    raw: bytes = b""
    """The body as it came."""


@dataclass
class WebReceiver:
    url: str
    status: int = 200
    location: str = ""
    received: list[Received] = field(default_factory=list)


@contextmanager
def web_receiver() -> Iterator[WebReceiver]:
    receiver = WebReceiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append(Received(self.path, dict(self.headers), json.loads(raw), raw))
            self.send_response(receiver.status)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dripping_receiver() -> Iterator[str]:
    """Accept connections and send one byte of a head every tenth of a second, without end."""
    stopped = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not stopped.wait(0.1):
                connection.sendall(b"a")

    def accept() -> None:
        while not stopped.is_set():
            with suppress(TimeoutError):
                connection, _ = server.accept()
                threads.append(threading.Thread(target=drip, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            stopped.set()
            for thread in threads:
                thread.join()


@dataclass
class MailReceiver:
    port: int = 0
    refuse: set[str] = field(default_factory=set)
    """Addresses that get nothing at present."""
    received: list[tuple[str, Message]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list
    ) -> str:
        if address in self.refuse:
            return "451 try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        for address in envelope.rcpt_tos:
            self.received.append((address, message_from_bytes(envelope.content)))
        return "250 OK"


@contextmanager
def mail_receiver() -> Iterator[MailReceiver]:
    receiver = MailReceiver()
    started, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await loop.create_server(lambda: SMTP(receiver, hostname="localhost"), "127.0.0.1", 0)
        receiver.port = server.sockets[0].getsockname()[1]
        started.set()
        await ended.wait()
        server.close()
        await server.wait_closed()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(240)
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
