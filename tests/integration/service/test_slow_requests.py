"""Requests that arrive slowly and answers that nobody reads hold no connection; those that are answered slowly do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from kneo_process import eventually

from kneo.background import background
from kneo.cli.serve.http_limits import PROTOCOLS, RequestTimer
from kneo.cli.serve.service import Server
from kneo.settings import HttpSettings

SECONDS = 30.0
"""How long a request may take, by a clock that the tests move."""

PATIENCE_SECONDS = 240.0
LARGE = 33_554_432
"""Bytes of an answer that no buffer of a system holds."""


class Timer:
    def __init__(self, due: float, act: Callable[[], None]) -> None:
        self.due, self.act, self.over = due, act, False

    def cancel(self) -> None:
        self.over = True


class Clock:
    """What time it is for the server, and what it has received; moved in the server's own thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.received: dict[int, int] = {}
        self.changed = threading.Condition()
        self.loop: asyncio.AbstractEventLoop | None = None

    def call_later(self, seconds: float, act: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, act))
        return self.timers[-1]

    def note(self, protocol: asyncio.BaseProtocol, size: int) -> None:
        port = protocol.transport.get_extra_info("peername")[1]  # type: ignore[attr-defined]
        with self.changed:
            self.received[port] = self.received.get(port, 0) + size
            self.changed.notify_all()

    def wait(self, connection: socket.socket, size: int) -> None:
        """Wait until the server has this many bytes of a connection."""
        port = connection.getsockname()[1]
        with self.changed:
            assert self.changed.wait_for(lambda: self.received.get(port, -1) >= size, PATIENCE_SECONDS)

    def advance(self, seconds: float) -> None:
        done = threading.Event()

        def move() -> None:
            self.now += seconds
            for timer in [each for each in self.timers if each.due <= self.now and not each.over]:
                timer.over = True
                timer.act()
            self.timers = [each for each in self.timers if not each.over]
            done.set()

        assert self.loop is not None
        self.loop.call_soon_threadsafe(move)
        assert done.wait(PATIENCE_SECONDS)


class App:
    """The application, with what a server asks of it. It reads the body and tells how long it was, once it may."""

    state = SimpleNamespace()

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        size, more = 0, scope["path"] != "/refused"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if scope["path"] == "/large":
            await _send_large(send, int(scope["query_string"]))
            return
        await asyncio.to_thread(self.may_answer.wait, PATIENCE_SECONDS)
        length = b"%d" % len(str(size))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": str(size).encode()})


async def _send_large(send, pieces: int) -> None:
    head = [(b"content-length", b"%d" % LARGE)]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for number in range(pieces):
        body = b"x" * (LARGE // pieces)
        await send({"type": "http.response.body", "body": body, "more_body": number < pieces - 1})


@dataclass
class Place:
    """A server: its port, its application and its clock."""

    server: Server
    port: int
    app: App
    clock: Clock


@contextmanager
def serving(protocol: type[RequestTimer], seconds: float) -> Iterator[tuple[Server, int, App]]:
    app = App()
    server = Server(
        app, HttpSettings(request_seconds=seconds, header_bytes=8_192), shutdown_seconds=1, protocol=protocol
    )  # type: ignore[arg-type]
    server.config.timeout_keep_alive = 3_600

    def stop() -> None:
        server.should_exit = True

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        background("server", lambda: server.run(sockets=[listener]), stop),
    ):
        yield server, listener.getsockname()[1], app


@pytest.fixture(scope="module", params=PROTOCOLS, ids=lambda protocol: protocol.__name__)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    clock = Clock()

    class Watched(request.param):  # type: ignore[name-defined, misc]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            clock.loop = self.loop
            clock.note(self, 0)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            clock.note(self, len(data))

        def later(self, seconds: float, act: Callable[[], None]) -> Timer:
            return clock.call_later(seconds, act)

    with serving(Watched, SECONDS) as (server, port, app):
        yield Place(server, port, app, clock)


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


def answered(connection: socket.socket) -> bytes:
    """Read one answer."""
    said = b""
    while not (said.count(b"\r\n\r\n") and said[-1:].isdigit()):
        chunk = connection.recv(65_536)
        assert chunk, said
        said += chunk
    return said


def is_up(place: Place) -> bool:
    with connected(place.port) as connection:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n1234567890")
        return answered(connection).endswith(b"\r\n\r\n10")


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
def test_a_request_that_never_arrives_whole_is_ended(place: Place, begin: bytes, status: bytes) -> None:
    with connected(place.port) as connection:
        connection.sendall(begin)
        place.clock.wait(connection, len(begin))
        place.clock.advance(SECONDS)
        assert rest(connection)[9:12] == status or (begin == b"\r\n" and not status)
    assert is_up(place)


@pytest.mark.parametrize("begin", [HEAD, HEAD + b"Content-Length: 100000\r\n\r\n"], ids=["head", "body"])
def test_a_request_that_arrives_byte_by_byte_is_ended(place: Place, begin: bytes) -> None:
    with connected(place.port) as connection:
        connection.sendall(begin)
        for count in range(10):
            connection.sendall(b"x")
            place.clock.wait(connection, len(begin) + count + 1)
            place.clock.advance(SECONDS / 10)
        assert rest(connection)[9:12] == b"408"
    assert is_up(place)


def test_half_requests_are_in_nobodys_way(place: Place) -> None:
    held = [socket.create_connection(("127.0.0.1", place.port), timeout=PATIENCE_SECONDS) for _ in range(100)]
    for connection in held:
        connection.sendall(HEAD)
    for connection in held:
        place.clock.wait(connection, len(HEAD))
    assert is_up(place)
    place.clock.advance(SECONDS)
    for connection in held:
        assert rest(connection)[9:12] == b"408"
        connection.close()


def test_half_a_second_request_is_ended_too(place: Place) -> None:
    whole = HEAD + b"Content-Length: 2\r\n\r\n12"
    with connected(place.port) as connection:
        connection.sendall(whole)
        assert answered(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        place.clock.wait(connection, len(whole) + len(HEAD))
        place.clock.advance(SECONDS)
        assert b"408" in rest(connection)
    assert is_up(place)


def test_a_slow_answer_is_not_cut_off(place: Place) -> None:
    whole = HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 100
    with connected(place.port) as connection:
        for count in (1, 2):
            place.app.may_answer.clear()
            try:
                connection.sendall(whole)
                place.clock.wait(connection, count * len(whole))
                place.clock.advance(SECONDS * 2)
            finally:
                place.app.may_answer.set()
            assert answered(connection).endswith(b"\r\n\r\n100")


@contextmanager
def reading_little(port: int) -> Iterator[socket.socket]:
    """A client with a small buffer."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(("127.0.0.1", port))
        yield connection


def is_idle(place: Place) -> bool:
    return not place.server.server_state.connections


@pytest.mark.parametrize("pieces", [1, 64], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["kept alive", "to be closed"])
def test_an_answer_that_is_never_read_is_ended(place: Place, pieces: int, closing: bytes) -> None:
    assert eventually(lambda: is_idle(place))
    with reading_little(place.port) as connection:
        connection.sendall(b"GET /large?%d HTTP/1.1\r\nHost: x\r\n%s\r\n" % (pieces, closing))
        assert connection.recv(1)

        def ended() -> bool:
            place.clock.advance(SECONDS)
            return is_idle(place)

        assert eventually(ended)
        assert len(rest(connection)) < LARGE
    assert is_up(place)


def test_an_answer_that_is_read_byte_by_byte_is_ended(place: Place) -> None:
    assert eventually(lambda: is_idle(place))
    with reading_little(place.port) as connection:
        connection.sendall(b"GET /large?64 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1)

        def ended() -> bool:
            place.clock.advance(SECONDS / 2)
            with suppress(ConnectionResetError):
                connection.recv(1)
            return is_idle(place)

        assert eventually(ended)
    assert is_up(place)


@pytest.mark.parametrize("pieces", [1, 64], ids=["in one piece", "in pieces"])
def test_an_answer_that_is_read_slowly_arrives_whole(place: Place, pieces: int) -> None:
    with reading_little(place.port) as connection:
        connection.sendall(b"GET /large?%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % pieces)
        pauses = read = 0
        while chunk := connection.recv(1_048_576):
            read += len(chunk)
            if read // (LARGE // 16) > pauses:
                pauses += 1
                place.clock.advance(SECONDS / 4)
        assert (read > LARGE, pauses) == (True, 16)


def test_several_requests_at_once_are_answered(place: Place) -> None:
    one = HEAD + b"Content-Length: 2\r\n\r\n12"
    with connected(place.port) as connection:
        connection.sendall(one * 3)
        said = b""
        while said.count(b"HTTP/1.1 200") < 3:
            said += connection.recv(65_536)


def test_the_rest_of_a_body_that_was_refused_is_no_head(place: Place) -> None:
    with connected(place.port) as connection:
        connection.sendall(b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
        assert answered(connection).endswith(b"\r\n\r\n0")
        connection.sendall(b"x" * 20_000)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n12")
        assert answered(connection).endswith(b"\r\n\r\n2")


@pytest.mark.parametrize("filler", [b"X-Large: " + b"x" * 300_000, b"X-Many: y\r\n" * 30_000, b"\r\n" * 10_000])
def test_a_head_without_end_is_refused(place: Place, filler: bytes) -> None:
    with connected(place.port) as connection:
        try:
            connection.sendall((b"" if filler.startswith(b"\r") else HEAD) + filler)
            place.clock.advance(SECONDS)
        except OSError:
            return
        said = rest(connection)
        assert said[9:12] in {b"400", b"431", b"408", b""}
    assert is_up(place)


@pytest.mark.parametrize("trailer", [b"X-Large: " + b"x" * 300_000, b"X-Many: y\r\n" * 30_000])
def test_trailers_without_end_are_refused(place: Place, trailer: bytes) -> None:
    with connected(place.port) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n")
        try:
            connection.sendall(trailer)
        except OSError:
            return
        assert rest(connection)[9:12] in {b"400", b"431", b""}
    assert is_up(place)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_a_deadline_comes_by_itself(protocol: type[RequestTimer]) -> None:
    with serving(protocol, 0.05) as (_, port, _), connected(port) as connection:
        connection.sendall(HEAD)
        # On a busy machine the deadline may pass before anything was read.
        assert rest(connection)[9:12] in {b"408", b""}


def test_idle_connections_stay_longer_than_clients_and_proxies_keep_them() -> None:
    httpx_seconds, proxy_seconds = 5, 60
    assert Server(App()).config.timeout_keep_alive > max(httpx_seconds, proxy_seconds)  # type: ignore[arg-type]
