"""The deltas of one stream, from the threads that publish them to the event loop that sends them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from kneo.records.conversation import ModelDelta

MAX_DELTAS = 256
"""Deltas that wait for a slow reader; the oldest ones are dropped."""

ANNOUNCE_SECONDS = 20.0
"""The interval at which a reader announces itself to other processes."""


class DeltaQueue:
    """Made on the event loop that reads it; ``put`` may be called in any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._deltas: deque[ModelDelta] = deque(maxlen=MAX_DELTAS)
        self._changed = asyncio.Event()
        self._announce_at = self._loop.time()

    def put(self, delta: ModelDelta) -> None:
        """Add a delta, from any thread."""
        self._deltas.append(delta)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def wake(self) -> None:
        """End a wait."""
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a delta or for ``wake``; return false after this many seconds without."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def take(self) -> Sequence[ModelDelta]:
        """Remove and return the deltas that have arrived."""
        return [self._deltas.popleft() for _ in range(len(self._deltas))]

    def is_announcement_due(self) -> bool:
        """Return whether the reader has to announce itself, and take note that it does."""
        is_due = self._loop.time() >= self._announce_at
        if is_due:
            self._announce_at = self._loop.time() + ANNOUNCE_SECONDS
        return is_due
