"""Requests that arrive slowly and answers that nobody reads hold no connection; those that are answered slowly do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
from kneo_process import eventually

from cli.http_limits import PROTOCOLS, RequestTimer
from cli.service import Server
from kneo.runtime.assemble import background
from kneo.settings import Http

SECONDS = 0.5
PATIENCE_SECONDS = 30.0
LARGE = 33_554_432
"""Bytes of an answer that no buffer of a system holds."""


async def answer(scope, receive, send) -> None:
    """Reads the body, waits as long as the query says, and tells how long the body was."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/large":
        await _send_large(send, int(scope["query_string"]))
        return
    if scope["query_string"]:
        await asyncio.sleep(float(scope["query_string"]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(str(size)))]})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def _send_large(send, pieces: int) -> None:
    head = [(b"content-length", b"%d" % LARGE)]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for number in range(pieces):
        body = b"x" * (LARGE // pieces)
        await send({"type": "http.response.body", "body": body, "more_body": number < pieces - 1})


class App:
    """The application, with what a server asks of it."""

    state = SimpleNamespace()

    async def __call__(self, scope, receive, send) -> None:
        await answer(scope, receive, send)


@dataclass
class Served:
    server: Server
    port: int


@pytest.fixture(scope="module", params=PROTOCOLS, ids=lambda protocol: protocol.__name__)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    protocol: type[RequestTimer] = request.param
    http = Http(request_seconds=SECONDS, header_bytes=8_192)
    server = Server(App(), http, shutdown_seconds=1, protocol=protocol)  # type: ignore[arg-type]

    def stop() -> None:
        server.should_exit = True

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        background("server", lambda: server.run(sockets=[listener]), stop),
    ):
        yield Served(server, listener.getsockname()[1])


@pytest.fixture
def port(served: Served) -> int:
    return served.port


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    said = b""
    try:
        while chunk := connection.recv(65_536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def is_up(port: int) -> bool:
    def answered() -> bool:
        # On a busy machine this request may be one that arrives too slowly.
        return httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * 10, timeout=PATIENCE_SECONDS).text == "10"

    return eventually(answered)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"P", b"408"),
        (HEAD, b"408"),
        (HEAD + b"X-Half: ", b"408"),
        (HEAD + b"Content-Length: 10\r\n\r\n12345", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n123", b"408"),
    ],
    ids=["nothing", "an empty line", "a letter", "half a head", "half a header", "half a body", "half a chunk"],
)
def test_a_request_that_never_arrives_whole_is_ended(port: int, begin: bytes, status: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(begin)
        assert rest(connection)[9:12] == status or (begin == b"\r\n" and not status)
    assert is_up(port)


@pytest.mark.parametrize("begin", [HEAD, HEAD + b"Content-Length: 100000\r\n\r\n"], ids=["head", "body"])
def test_a_request_that_arrives_byte_by_byte_is_ended(port: int, begin: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(begin)
        try:
            while True:
                connection.sendall(b"x")
                time.sleep(SECONDS / 10)
        except OSError:
            pass
    assert is_up(port)


def test_half_requests_are_in_nobodys_way(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) for _ in range(100)]
    for connection in held:
        connection.sendall(HEAD)
    assert is_up(port)
    for connection in held:
        assert rest(connection)[9:12] == b"408"
        connection.close()


def test_half_a_second_request_is_ended_too(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n12")
        first = connection.recv(65_536)
        assert first.startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert b"408" in rest(connection)
    assert is_up(port)


def test_a_slow_answer_is_not_cut_off(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
        for _ in range(2):
            assert client.post(f"/?{SECONDS * 2}", content=b"x" * 100).text == "100"


@contextmanager
def reading_little(port: int) -> Iterator[socket.socket]:
    """A client with a small buffer."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(("127.0.0.1", port))
        yield connection


@pytest.mark.parametrize("pieces", [1, 64], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["kept alive", "to be closed"])
def test_an_answer_that_is_never_read_is_ended(served: Served, pieces: int, closing: bytes) -> None:
    assert eventually(lambda: not served.server.server_state.connections)
    with reading_little(served.port) as connection:
        connection.sendall(b"GET /large?%d HTTP/1.1\r\nHost: x\r\n%s\r\n" % (pieces, closing))
        assert connection.recv(1)
        assert eventually(lambda: not served.server.server_state.connections)
        assert len(rest(connection)) < LARGE
    assert is_up(served.port)


def test_an_answer_that_is_read_byte_by_byte_is_ended(served: Served) -> None:
    assert eventually(lambda: not served.server.server_state.connections)
    with reading_little(served.port) as connection:
        connection.sendall(b"GET /large?64 HTTP/1.1\r\nHost: x\r\n\r\n")

        def ended() -> bool:
            with suppress(ConnectionResetError):
                connection.recv(1)
            return not served.server.server_state.connections

        assert eventually(ended)
    assert is_up(served.port)


@pytest.mark.parametrize("pieces", [1, 64], ids=["in one piece", "in pieces"])
def test_an_answer_that_is_read_slowly_arrives_whole(port: int, pieces: int) -> None:
    def arrives() -> bool:
        # On a busy machine this client may be one that reads too slowly.
        begin, read = time.monotonic(), 0
        with reading_little(port) as connection, suppress(ConnectionResetError):
            connection.sendall(b"GET /large?%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % pieces)
            pause = 0
            while chunk := connection.recv(1_048_576):
                read += len(chunk)
                if read // (LARGE // 16) > pause:
                    pause += 1
                    time.sleep(SECONDS / 4)
        return read > LARGE and time.monotonic() - begin > SECONDS * 2

    assert eventually(arrives)


def test_several_requests_at_once_are_answered(port: int) -> None:
    one = HEAD + b"Content-Length: 2\r\n\r\n12"
    with connected(port) as connection:
        connection.sendall(one * 3)
        said = b""
        while said.count(b"HTTP/1.1 200") < 3:
            said += connection.recv(65_536)


@pytest.mark.parametrize("filler", [b"X-Large: " + b"x" * 300_000, b"X-Many: y\r\n" * 30_000, b"\r\n" * 10_000])
def test_a_head_without_end_is_refused(port: int, filler: bytes) -> None:
    with connected(port) as connection:
        try:
            connection.sendall((b"" if filler.startswith(b"\r") else HEAD) + filler)
        except OSError:
            return
        said = rest(connection)
        assert said[9:12] in {b"400", b"431", b""}
    assert is_up(port)
