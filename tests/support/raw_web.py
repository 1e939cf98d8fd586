"""A web server on loopback that sends exactly the bytes of a test, and keeps the requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WebCall:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class RawWeb:
    port: int = 0
    calls: list[WebCall] = field(default_factory=list)
    connections: int = 0


Answer = Callable[[WebCall], bytes | Iterable[bytes] | None]
"""From a request to the bytes of its response; ``None``: never an answer."""


def page(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def raw_web(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawWeb]:
    web = RawWeb()
    open_: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        web.connections += 1
        task = asyncio.current_task()
        assert task is not None
        open_[task] = writer
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, target, _ = first.split(" ")
                call = WebCall(method, target, headers, body)
                web.calls.append(call)
                response = answer(call)
                if response is None:
                    await reader.read()
                    break
                for part in [response] if isinstance(response, bytes) else response:
                    writer.write(part)
                    await writer.drain()
        with suppress(ConnectionError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()
        del open_[task]

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        for writer in open_.values():
            writer.transport.abort()
        await asyncio.gather(*open_, return_exceptions=True)
