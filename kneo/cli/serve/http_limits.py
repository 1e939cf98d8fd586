"""Limits of the HTTP server: the time for a request to arrive and for a response to be read, and the size of a head."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kneo.settings import HttpSettings

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


ANSWER_BYTES = 65_536
"""Bytes of a response that a client has to read in the time limit of a request."""

_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: the unsent part of a response is dropped with the connection."""


class RequestTimer(asyncio.Protocol):
    """Ends connections on which a request does not arrive in time, or a response is not read.

    Mixed into a protocol of uvicorn.
    """

    seconds: ClassVar[float] = HttpSettings.request_seconds
    header_bytes: ClassVar[int] = HttpSettings.header_bytes

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Writing is paused for as long as the client has unread data, also on a closed connection.
        self.transport.set_write_buffer_limits(high=0)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or not self.is_arriving():
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def is_arriving(self) -> bool:
        """Return whether the received bytes are less than whole requests."""
        raise NotImplementedError

    def is_unanswered(self) -> bool:
        """Return whether no part of the response to the arriving request was sent."""
        raise NotImplementedError

    def is_paused(self) -> bool:
        """Return whether this server paused reading."""
        flow = getattr(self, "flow", None)
        return bool(flow is not None and flow.read_paused)

    def later(self, seconds: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after a time."""
        return self.loop.call_later(seconds, act)

    def _expect_reading(self) -> None:
        """Check again, after the time limit, how much of the unread data the client has read."""
        waiting = self.transport.get_write_buffer_size()
        self._reading = self.later(self.seconds, partial(self._check_reading, waiting))

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _check_reading(self, before: int) -> None:
        # Nothing is written while writing is paused, so the unread data only becomes less.
        if before - self.transport.get_write_buffer_size() >= ANSWER_BYTES:
            self._expect_reading()
            return
        self._reading = None
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _arm(self) -> None:
        self._deadline = self.later(self.seconds, self._end)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.is_paused():
            self._arm()
            return
        if self.is_unanswered():
            self.transport.write(_TOO_SLOW)
        self.transport.close()


class TimedH11(RequestTimer, H11Protocol):
    """The protocol in Python. uvicorn bounds the head that it keeps."""

    def is_arriving(self) -> bool:
        return self.conn.their_state in {h11.IDLE, h11.SEND_BODY}

    def is_unanswered(self) -> bool:
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return not self.cycle.response_started


PROTOCOLS: list[type[RequestTimer]] = [TimedH11]

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    pass
else:

    class TimedHttpTools(RequestTimer, HttpToolsProtocol):
        """The protocol in C. Its parser keeps all input, so the input is counted until a head is complete."""

        _arriving = False
        _in_head = False
        _has_body = False
        _fed = 0

        def data_received(self, data: bytes) -> None:
            in_body = self._arriving and not self._in_head
            self._has_body = False
            super().data_received(data)
            if in_body:
                # Input of a body that is no content is a trailer. Input that ends a body may begin the next head; it is not counted.
                is_counted = self._arriving and not self._in_head and not self._has_body
            else:
                idle = self.cycle is None or self.cycle.response_complete
                is_counted = self._in_head or (idle and not self._arriving)
            self._fed = self._fed + len(data) if is_counted else 0
            if self._fed > self.header_bytes and not self.transport.is_closing():
                if not in_body or self.is_unanswered():
                    self.transport.write(_TOO_LARGE)
                self.transport.close()

        def on_body(self, body: bytes) -> None:
            self._has_body = True
            super().on_body(body)

        def on_message_begin(self) -> None:
            self._arriving = self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._arriving = False
            super().on_message_complete()

        def is_arriving(self) -> bool:
            return self._arriving or self.cycle is None or self.cycle.response_complete

        def is_unanswered(self) -> bool:
            if self._in_head:
                return self.cycle is None or self.cycle.response_complete
            return self._arriving and not self.cycle.response_started

    PROTOCOLS.insert(0, TimedHttpTools)


def timed_protocol(http: HttpSettings, base: type[RequestTimer] = PROTOCOLS[0]) -> type[asyncio.Protocol]:
    """Return a protocol for uvicorn with these limits.

    Args:
        http: The limits.
        base: The protocol; by default the fastest that is installed.
    """
    bounds = {"seconds": http.request_seconds, "header_bytes": http.header_bytes}
    protocol: type[asyncio.Protocol] = type(base.__name__, (base,), bounds)
    return protocol


DefaultProtocol = PROTOCOLS[0]
"""The default limits of a service."""
