"""A proxy of PostgreSQL that pools transactions, as PgBouncer does: an idle session serves the next transaction of any client."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

READY, IDLE = ord("Z"), ord("I")

ENCRYPTION = {80_877_103, 80_877_104}
"""The codes with which a client asks for TLS or GSSAPI."""


class _Server:
    """A session with PostgreSQL, and the messages with which it began."""

    def __init__(self, address: str, startup: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.socket.sendall(startup)
        self.buffer = b""
        self.greeting = b""
        while not self.is_idle(more := self.socket.recv(65_536)):
            self.greeting += more
        self.greeting += more

    def is_idle(self, data: bytes) -> bool:
        """Whether the messages that these bytes complete end a transaction."""
        assert data, "the server closed the session"
        self.buffer += data
        idle = False
        while len(self.buffer) >= 5 and len(self.buffer) > (size := struct.unpack("!I", self.buffer[1:5])[0]):
            message, self.buffer = self.buffer[: size + 1], self.buffer[size + 1 :]
            idle = message[0] == READY and message[5] == IDLE
        return idle and not self.buffer


class TransactionPooler:
    """Listens at a port of this machine."""

    def __init__(self, folder: Path) -> None:
        self._address = str(folder / ".s.PGSQL.5432")
        self._servers: list[_Server] = []
        self._idle: list[_Server] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        for server in self._servers:
            server.socket.close()

    def _session(self, startup: bytes) -> _Server:
        if self._idle:
            return self._idle.pop()
        self._servers.append(_Server(self._address, startup))
        return self._servers[-1]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, AssertionError):
            while struct.unpack("!I", (startup := client.recv(65_536))[4:8])[0] in ENCRYPTION:
                client.sendall(b"N")
            server = self._session(startup)
            self._idle.append(server)
            client.sendall(server.greeting)
            while request := client.recv(65_536):
                if request[0] == ord("X"):
                    return
                server = self._session(startup)
                self._relay(client, server, request)

    def _relay(self, client: socket.socket, server: _Server, request: bytes) -> None:
        """Pass on messages until the transaction ends; the session is idle before the client knows that."""
        server.socket.sendall(request)
        with selectors.DefaultSelector() as either:
            either.register(client, selectors.EVENT_READ)
            either.register(server.socket, selectors.EVENT_READ)
            while True:
                for key, _ in either.select():
                    data = key.fileobj.recv(65_536)
                    if key.fileobj is client:
                        assert data, "the client left within a transaction"
                        server.socket.sendall(data)
                        continue
                    if is_idle := server.is_idle(data):
                        self._idle.append(server)
                    client.sendall(data)
                    if is_idle:
                        return


@contextlib.contextmanager
def pooling(folder: Path) -> Iterator[TransactionPooler]:
    """Run a proxy in front of the server whose socket is in a folder."""
    pooler = TransactionPooler(folder)
    try:
        yield pooler
    finally:
        pooler.close()
