"""Responses of protocol libraries within the limits of streams: counted by person, and given up where the reader is too slow."""

from __future__ import annotations

import asyncio
import logging

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kneo.errors import Transient
from kneo.service.events import Streams
from kneo.service.problems import refusal

log = logging.getLogger("kneo.service")


class LimitedResponse(Response):
    """A response that counts as a stream of a person while it is sent.

    Args:
        response: The response of a library.
        streams: Counts the open streams.
        person: The caller.
    """

    def __init__(self, response: Response, streams: Streams, person: str) -> None:
        super().__init__()
        self.response = response
        self.streams = streams
        self.person = person

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.streams.slow_seconds):
                await send(message)

        try:
            self.streams.check(self.person)
        except Transient as error:
            await refusal(error)(scope, receive, send)
            return
        with self.streams.counted(self.person):
            try:
                await self.response(scope, receive, send_in_time)
            except* TimeoutError:
                log.info("a reader of a stream was too slow", extra={"actor": self.person})
