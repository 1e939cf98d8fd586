"""Reads that the streams of one feed share: each change is read once for all of them, and a bounded buffer holds the newest events.

What is shared is what the scope of the feed permits to each of its callers: views are made without a caller, and hold nothing that
only some of them may read. What depends on the caller is up to each stream: whether the request was allowed, whether its session still exists, the words
of a status.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from kneo.service.events import Event
from kneo.store.change_feed import ChangeFeed

EVENTS_PER_READ = 100
"""Events of one read, and the most events of a buffer, which bounds the memory of a feed and of a stream far behind."""


class SharedRead(ABC):
    """The present state of one feed, which one read at a time brings up to date for all its streams.

    The first stream that waits begins the read, and the others wait for the same one; while no stream waits, nothing is read. An
    error of the read ends each stream that waits for it, and the next stream that waits begins another read.
    """

    def __init__(self) -> None:
        self.version = 0
        """A number that grows with each change that was read."""
        self.streams = 0
        """The number of streams that follow the feed."""
        self._reading: asyncio.Future[None] | None = None

    @abstractmethod
    async def _read(self) -> bool:
        """Wait for a change and read it; return false where the service stops before one."""

    def after(self, version: int) -> asyncio.Future[None]:
        """Return a future that is done once there is a later version. Other streams share it, so that none may cancel it."""
        if self.version > version:
            present: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            present.set_result(None)
            return present
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._advance())
        return self._reading

    async def wait(self, version: int, seconds: float) -> bool:
        """Wait for a later version; return false after this many seconds without one."""
        done, _ = await asyncio.wait({self.after(version)}, timeout=seconds)
        for future in done:
            future.result()
        return self.version > version

    async def _advance(self) -> None:
        if await self._read():
            self.version += 1

    def close(self) -> None:
        """End the read that is under way."""
        if self._reading is not None:
            self._reading.cancel()


R = TypeVar("R", bound=SharedRead)


class SharedReads:
    """The shared reads of a service, on one event loop: one for each feed that has a stream.

    Args:
        changes: The change feed of the database.
    """

    def __init__(self, changes: ChangeFeed) -> None:
        self.changes = changes
        self._reads: dict[Hashable, SharedRead] = {}

    def __len__(self) -> int:
        return len(self._reads)

    @property
    def stopping(self) -> bool:
        """Whether the service stops."""
        return self.changes.stopping

    @contextmanager
    def follow(self, feed: Hashable, make: Callable[[], R]) -> Iterator[R]:
        """Return the shared read of a feed until the block ends. The last stream that leaves closes it.

        Args:
            feed: The feed; all streams of one feed make a read of one type.
            make: Makes the read for the first stream.
        """
        read: R = self._reads.get(feed) or make()  # type: ignore[assignment]
        self._reads[feed] = read
        read.streams += 1
        try:
            yield read
        finally:
            read.streams -= 1
            if not read.streams:
                del self._reads[feed]
                read.close()


@dataclass(frozen=True)
class Positioned:
    """An event and its position in its feed, in a feed of all environments with its own."""

    position: int
    event: Event
    environment: str | None = None


class EventBuffer(SharedRead):
    """The newest events of one feed: those after one position and up to another, without a gap.

    A stream that is before the first position reads for itself, page by page, until it reaches the buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: deque[Positioned] = deque()
        self._begin = self._end = 0
        self._has_moved = False
        """Whether a stream has moved the buffer ahead of streams that may wait for the events in between."""

    @abstractmethod
    def _page(self, position: int) -> Sequence[Positioned]:
        """Read the next events after a position, ``EVENTS_PER_READ`` at most; called in other threads."""

    def join(self, position: int) -> None:
        """Begin the buffer at the position of a new stream, where no stream has come so far."""
        if position > self._end:
            self._events.clear()
            self._begin = self._end = position
            self._has_moved = True

    def _take_move(self) -> bool:
        """Return whether the buffer was moved since the last read: a read then ends at once, so that streams read for themselves."""
        has_moved, self._has_moved = self._has_moved, False
        return has_moved

    async def _extend(self, known: int) -> bool:
        """Read one page into the buffer; return whether the buffer has come to a known position of the feed."""
        page = await run_in_threadpool(self._page, self._end)
        # A stream may have joined further ahead in the meantime.
        self._events.extend(item for item in page if item.position > self._end)
        newest = page[-1].position if page else 0
        # After a page with room left there are no more events up to the known position, where some were deleted.
        self._end = max(self._end, newest, known if len(page) < EVENTS_PER_READ else 0)
        while len(self._events) > EVENTS_PER_READ:
            self._begin = self._events.popleft().position
        return self._end >= known

    async def events(self, after: int) -> AsyncIterator[Positioned]:
        """Yield the events after a position, up to the end of the buffer."""
        while after < self._end:
            is_held = after >= self._begin
            page = self._held(after) if is_held else await run_in_threadpool(self._page, after)
            for item in page:
                yield item
            if not page:
                return
            after = page[-1].position

    def _held(self, after: int) -> Sequence[Positioned]:
        return [item for item in self._events if item.position > after]
