"""Server-sent events: an answer that goes on, for as long as its reader keeps up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kneo.errors import Transient

HEADERS = {
    "cache-control": "no-store",
    "content-type": "text/event-stream; charset=utf-8",
    # Proxies that collect an answer before they pass it on would defeat its purpose.
    "x-accel-buffering": "no",
}

RETRY_MS = 1_000
"""How long browsers wait before they ask again."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event. ``id`` is what a reader that was cut off sends as ``Last-Event-ID`` to go on from here."""

    name: str
    data: Mapping[str, object]
    id: str | None = None

    def encode(self) -> bytes:
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), default=dict)
        number = f"id: {self.id}\n" if self.id is not None else ""
        return f"{number}event: {self.name}\ndata: {data}\n\n".encode()


Events = AsyncIterator[Event | None]
"""Events as they happen; ``None`` where nothing did for a while, which keeps the connection open."""


class Streams:
    """Counts the answers that go on; there is room for so many.

    Args:
        most: How many at once.
        slow_seconds: How long a reader may not take what is sent before it is cut off.
    """

    def __init__(self, most: int, slow_seconds: float) -> None:
        self.most = most
        self.slow_seconds = slow_seconds
        self.open = 0

    def answer(self, events: Events) -> EventStream:
        """Begin one.

        Raises:
            Transient: ``too_many_streams``.
        """
        if self.open >= self.most:
            msg = f"{self.most} streams are open here, which is as many as there may be."
            raise Transient(msg, code="too_many_streams", limit=self.most)
        return EventStream(self, events)


class EventStream(Response):
    """Sends events until there are no more, the reader is gone or too slow."""

    def __init__(self, streams: Streams, events: Events) -> None:
        super().__init__(None, 200, HEADERS)
        del self.headers["content-length"]
        self.streams = streams
        self.events = events

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        self.streams.open += 1
        sending = asyncio.create_task(self._send(send))
        listening = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.streams.open -= 1
            for task in (sending, listening):
                task.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(_part(f"retry: {RETRY_MS}\n\n".encode()))
        try:
            async for event in self.events:
                async with asyncio.timeout(self.streams.slow_seconds):
                    await send(_part(event.encode() if event is not None else b": still here\n\n"))
        except TimeoutError:
            # What it missed is in the database: it comes back with the last id that it saw.
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
