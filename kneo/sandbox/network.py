"""The network of a sandbox: every connection of a confined process leads to a proxy, which lets it reach declared hosts alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from kneo.errors import KneoError
from kneo.sandbox.confine import number_of

Check: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host, or raises why it may not be reached at a port."""

PROXY_VARIABLES = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:3128")
"""What a client of a sandbox is configured with. Any address leads to the proxy."""

MAX_DENIED = 10
MAX_HEAD_BYTES = 16_384
HEAD_SECONDS = 30.0
CONNECT_SECONDS = 30.0

_RECEIVE, _SEND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
_REPLACE, _CONTINUE = 1, 1


class ConnectionNotifier:
    """Answers the system calls on which a filter reports: connections, and processes that a template starts.

    A connection leads to the proxy, whatever address it asked for. A template starts one process for each call of the worker.
    Nothing of the process is read but the flags of its descriptor, so nothing can be swapped after it was checked.

    Args:
        listener: The descriptor on which the filter of system calls reports.
        accept: Takes the other end of each connection.
    """

    def __init__(self, listener: int, accept: Callable[[socket.socket], None]) -> None:
        self._listener, self._accept = listener, accept
        self.forks = 0
        """The processes that a template may start now."""
        asyncio.get_running_loop().add_reader(listener, self._answer)

    def close(self) -> None:
        """End; connections that are asked for later fail."""
        if self._listener >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
            os.close(self._listener)
            self._listener = -1

    def _answer(self) -> None:
        request = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EINTR}:  # of a process that was killed meanwhile
                self.close()
            return
        number, pid = struct.unpack_from("=QI", request)
        call, descriptor = struct.unpack_from("=i12xI", request, 16)
        code = flags = 0
        if call != number_of("connect"):
            code, flags = (0, _CONTINUE) if self.forks else (-errno.EPERM, 0)
            self.forks = max(0, self.forks - 1)
        else:
            try:
                self._connect(number, pid, descriptor)
            except (OSError, ValueError, StopIteration):
                code = -errno.EACCES
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._listener, _SEND, struct.pack("=QqiI", number, 0, code, flags))

    def _connect(self, number: int, pid: int, descriptor: int) -> None:
        facts = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
        flags = int(next(line for line in facts if line.startswith("flags:")).split()[1], 8)
        theirs, ours = _pair()
        with theirs:
            theirs.setblocking(not flags & os.O_NONBLOCK)
            added = struct.pack("=QIIII", number, _REPLACE, theirs.fileno(), descriptor, flags & os.O_CLOEXEC)
            fcntl.ioctl(self._listener, _ADD_DESCRIPTOR, added)
        self._accept(ours)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection in this process: clients set options of TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        while True:
            other, peer = server.accept()
            if peer == one.getsockname():
                return one, other
            other.close()


def is_named(host: str, port: int, net: Sequence[str]) -> bool:
    """Return whether a profile names a host and port."""
    for each in net:
        name, _, number = each.rpartition(":")
        fits = host.endswith(name[1:]) if name.startswith("*.") else host == name
        if fits and number == str(port):
            return True
    return False


class FilterProxy:
    """A proxy for the connections of one sandbox. It takes ``CONNECT host:port``, and refuses everything else with 403.

    Args:
        net: The hosts and ports of the profile.
    """

    def __init__(self, net: Sequence[str]) -> None:
        self._net = net
        self._tasks: set[asyncio.Task[None]] = set()
        self.check: Check | None = None
        self.denied: list[str] = []
        """Hosts and ports that the current call did not reach."""

    def accept(self, connection: socket.socket) -> None:
        """Serve a connection."""
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end_connections(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                target = await _target(reader)
            opened = await self._open(target) if target is not None else None
            if opened is None:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
                return
            far_reader, far_writer = opened
            try:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, TimeoutError, EOFError):
            pass
        finally:
            writer.close()

    async def _open(self, target: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        host, port = target
        try:
            if not is_named(host, port, self._net) or self.check is None:
                self._deny(host, port)
                return None
            addresses = await self.check(host, port)
        except KneoError:
            self._deny(host, port)
            return None
        for address in addresses:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection(address, port)
        return None

    def _deny(self, host: str, port: int) -> None:
        name = f"{host}:{port}"
        if name not in self.denied and len(self.denied) < MAX_DENIED:
            self.denied.append(name)


async def _target(reader: asyncio.StreamReader) -> tuple[str, int] | None:
    """Return the host and port of a request; ``None`` for everything but ``CONNECT``."""
    head, method = b"", b"CONNECT "
    while b"\r\n\r\n" not in head:
        received = await reader.read(4_096)
        head += received
        if not received or len(head) > MAX_HEAD_BYTES or head[: len(method)] != method[: len(head)]:
            return None
    host, _, port = head[len(method) :].split(b" ", 1)[0].decode("latin-1").rpartition(":")
    host = host.lower().removesuffix(".")
    is_host = host.isascii() and all(each.isalnum() or each in "-._" for each in host) and len(host) <= 253
    return (host, int(port)) if is_host and port.isascii() and port.isdigit() and len(port) <= 5 else None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
