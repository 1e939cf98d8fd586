"""Streams: responses that send events until the reader leaves or is too slow, and the number of open ones."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import cached_property

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kneo.errors import Transient
from kneo.names import person_key
from kneo.service.limits import TooMany
from kneo.service.problems import refusal

log = logging.getLogger("kneo.service")

HEADERS = {
    "cache-control": "no-store",
    "content-type": "text/event-stream; charset=utf-8",
    # Proxies that buffer a response would defeat its purpose.
    "x-accel-buffering": "no",
}

RETRY_MS = 1_000
"""Milliseconds that browsers wait before they reconnect."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event. ``id`` is the ``Last-Event-ID`` with which a disconnected reader continues from here.

    Without a name it consists of the id alone, which readers store without raising an event.
    """

    name: str
    data: Mapping[str, object]
    id: str | None = None

    @cached_property
    def encoded(self) -> bytes:
        """The event as it is sent, the same for all readers."""
        if not self.name:
            # Readers store the id without an event.
            return f"id: {self.id}\n\n".encode()
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), default=dict)
        number = f"id: {self.id}\n" if self.id is not None else ""
        return f"{number}event: {self.name}\ndata: {data}\n\n".encode()


Events = AsyncGenerator[Event | None, None]
"""Events of a stream; ``None`` after a pause without events, which keeps the connection open."""


class Streams:
    """Counts the open streams of a process, in total and of each person.

    Args:
        most: Limit of open streams.
        most_of_person: Limit of open streams of one person, so that one person does not use all of them.
        slow_seconds: Seconds without progress after which a slow reader is disconnected.
    """

    def __init__(self, most: int, most_of_person: int, slow_seconds: float) -> None:
        self.most = most
        self.most_of_person = most_of_person
        self.slow_seconds = slow_seconds
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """The number of open streams."""
        return self._open.total()

    def answer(self, events: Events, person: str) -> EventStream:
        """Open a stream for a person.

        Raises:
            Transient: ``too_many_streams``: 429 at the limit of a person, else 503.
        """
        self.check(person)
        return EventStream(self, events, person)

    def check(self, person: str) -> None:
        """Check that another stream of a person is within the limits.

        Raises:
            Transient: as ``answer`` says.
        """
        if self._open[person_key(person)] >= self.most_of_person:
            msg = f"{person} has {self.most_of_person} open streams, which is the limit of one person."
            raise TooMany(msg, code="too_many_streams", limit=self.most_of_person)
        if self.open >= self.most:
            msg = f"{self.most} streams are open, which is the limit of this process."
            raise Transient(msg, code="too_many_streams", limit=self.most)

    @contextmanager
    def _counted(self, person: str) -> Iterator[None]:
        key = person_key(person)
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            self._open += Counter()  # Removes people without open streams.

    async def serve(self, person: str, response: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a response that counts as a stream of a person; refuse it where the person or the process has too many."""
        try:
            self.check(person)
        except Transient as error:
            await refusal(error)(scope, receive, send)
            return
        with self._counted(person):
            await response(scope, receive, send)


class EventStream(Response):
    """Sends events until the stream ends, the reader disconnects or is too slow."""

    def __init__(self, streams: Streams, events: Events, person: str) -> None:
        super().__init__(None, 200, HEADERS)
        del self.headers["content-length"]
        self.streams = streams
        self.events = events
        self.person = person

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Checked again, because other streams may have begun since this one was created.
        await self.streams.serve(self.person, self._stream, scope, receive, send)

    async def _stream(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        listening = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, listening):
                task.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(_part(f"retry: {RETRY_MS}\n\n".encode()))
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    async with asyncio.timeout(self.streams.slow_seconds):
                        await send(_part(event.encoded if event is not None else b": still here\n\n"))
        except TimeoutError:
            # Missed events are in the database: the reader reconnects with its last event id.
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class LimitedResponse(Response):
    """A response of a library, which counts as a stream of a person while it is sent.

    Args:
        response: The response.
        streams: Counts the open streams.
        person: The caller.
    """

    def __init__(self, response: Response, streams: Streams, person: str) -> None:
        super().__init__()
        self.response = response
        self.streams = streams
        self.person = person

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.streams.serve(self.person, self._send, scope, receive, send)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.streams.slow_seconds):
                await send(message)

        try:
            await self.response(scope, receive, send_in_time)
        except* TimeoutError:
            log.info("a reader of a stream was too slow", extra={"actor": self.person})
