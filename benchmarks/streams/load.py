"""The load, in a process of its own until its standard input ends: slow readers of streams, and sign-ins that are refused.

``python -m benchmarks.streams.load URL COOKIE RUN…`` prints a line once every stream is open.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

INBOX, RUNS, PAGES = 100, 60, 40
"""Slow clients of the inbox, of runs, and pages of the console that are open."""

REFUSED_PER_SECOND = 100
PROXIES = 10
"""Connections that bring the refused sign-ins, as proxies keep them open."""

RECEIVE_BYTES = 4_096
"""The receive buffer of a slow client, and the bytes that it reads at once."""

PAUSE_SECONDS = 1.0
"""The pause of a slow client after each read."""


class SlowClient:
    """A client that reads a stream slowly, and connects again where the stream ends or the service closes it."""

    def __init__(self, address: tuple[str, int], paths: Iterator[str], header: str, counts: Counter[str]) -> None:
        self.address = address
        self.paths = paths
        self.header = header
        self.counts = counts
        self.opened = asyncio.Event()

    async def read(self) -> None:
        """Read one stream after the other."""
        for path in self.paths:
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
                connection.setblocking(False)
                await self._read(connection, path)

    async def _read(self, connection: socket.socket, path: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self.address)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self.header}\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(connection, head.encode())
        while data := await loop.sock_recv(connection, RECEIVE_BYTES):
            if not self.opened.is_set() and not data.startswith(b"HTTP/1.1 200"):
                sys.exit(data.decode(errors="replace"))
            self.opened.set()
            self.counts["bytes read"] += len(data)
            await asyncio.sleep(PAUSE_SECONDS)
        self.counts["streams ended"] += 1


async def refuse(address: tuple[str, int], proxy: int, counts: Counter[str]) -> None:
    """Try to sign in with a wrong key, each time from another address, at an even pace."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*address)
    due = loop.time()
    for number in itertools.count():
        body = f"key=wrong-{number}"
        writer.write(
            f"POST /console/login HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\nX-Forwarded-For: "
            f"10.{proxy}.{number // 250 % 250}.{number % 250}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Accept-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
        counts[f"sign-ins {head.split()[1]}"] += 1
        due += PROXIES / REFUSED_PER_SECOND
        await asyncio.sleep(max(0.0, due - loop.time()))


async def load(url: str, cookie: str, runs: list[str]) -> None:
    """Begin the load, and keep it up until the standard input ends."""
    parts = urlsplit(url)
    address, counts = (str(parts.hostname), int(parts.port or 0)), Counter[str]()
    key = "Authorization: Bearer viewer-key"
    clients = [
        *(SlowClient(address, itertools.repeat("/v1/human-tasks/stream"), key, counts) for _ in range(INBOX)),
        *(SlowClient(address, (f"/v1/runs/{run}/events" for run in runs), key, counts) for _ in range(RUNS)),
        *(SlowClient(address, itertools.repeat("/console/live"), f"Cookie: {cookie}", counts) for _ in range(PAGES)),
    ]
    tasks = [asyncio.create_task(client.read()) for client in clients]
    for client in clients:
        await client.opened.wait()
    tasks += [asyncio.create_task(refuse(address, proxy, counts)) for proxy in range(PROXIES)]
    sys.stdout.write("open\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    failed = [task for task in tasks if task.done() and task.exception() is not None]
    counts["clients failed"] = len(failed)
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(load(sys.argv[1], sys.argv[2], sys.argv[3:]))
