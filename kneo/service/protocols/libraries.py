"""The libraries of protocols, which extras install, and their responses within the limits of streams."""

from __future__ import annotations

import asyncio
import importlib
import logging
from types import ModuleType

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kneo.errors import Invalid, Transient
from kneo.service.events import Streams
from kneo.service.problems import refusal


def import_with_extra(name: str, extra: str) -> ModuleType:
    """Import a module of Kneo that needs the SDK of a protocol.

    Raises:
        Invalid: ``a2a_not_installed``, ``mcp_not_installed``.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kneo":
            raise
        msg = "This protocol needs a package that is not installed here."
        raise Invalid(msg, code=f"{extra}_not_installed", hint=f"Install it: pip install 'kneo[{extra}]'.") from None


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
