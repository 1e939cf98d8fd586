"""The size of a provider's reply, bounded while it is read: a server must not fill the memory of a worker."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any, Protocol, TypeAlias

PLAIN = frozenset({"", "identity"})
"""Encodings of a body that is as long as it arrives."""


class ReplyTooLarge(Exception):
    """A reply has more bytes than are read, or its size is hidden by a compression that was not requested."""


class ByteStream(Protocol):
    """The body of a response."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class _Request(Protocol):
    @property
    def headers(self) -> MutableMapping[str, str]: ...


class _Response(_Request, Protocol):
    stream: Any


Hook: TypeAlias = Callable[[Any], Awaitable[None]]


def limit_replies(max_bytes: int) -> dict[str, list[Hook]]:
    """Return the event hooks of an HTTP client, of ``httpx`` or ``httpx2``, that bound each response.

    Raises:
        ReplyTooLarge: from the hooks, when a response arrives or while its body is read.
    """

    async def ask_uncompressed(request: _Request) -> None:
        request.headers["Accept-Encoding"] = "identity"

    async def bound(response: _Response) -> None:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in PLAIN:
            msg = f"compressed reply ({encoding[:20]})"
            raise ReplyTooLarge(msg)
        library = type(response).__module__.partition(".")[0]
        response.stream = _bounded_stream(library)(response.stream, max_bytes)

    return {"request": [ask_uncompressed], "response": [bound]}


@cache
def _bounded_stream(library: str) -> Callable[[ByteStream, int], ByteStream]:
    """Return the class of bounded bodies for an HTTP library, which accepts subclasses of its own class only."""
    base: Any = importlib.import_module(library).AsyncByteStream

    class BoundedStream(base):  # type: ignore[misc]  # one of two libraries, each with its own class
        def __init__(self, body: ByteStream, max_bytes: int) -> None:
            self._body, self._left, self._max_bytes = body, max_bytes, max_bytes

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._body:
                self._left -= len(part)
                if self._left < 0:
                    msg = f"reply above {self._max_bytes} bytes"
                    raise ReplyTooLarge(msg)
                yield part

        async def aclose(self) -> None:
            await self._body.aclose()

    return BoundedStream
