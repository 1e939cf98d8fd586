"""The stream of marks: it reports that something changed, never what; a page with that mark asks for itself again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from kneo.service.context import next_change
from kneo.service.events import Event, Events
from kneo.service.shared_reads import SharedRead, SharedReads
from kneo.store.change_feed import ChangeFeed
from kneo.store.marks import Marks, MarksChanged, numbered

PAUSE_SECONDS = 0.5
"""The shortest time between two events, which bounds how often pages are asked for."""


class MarksFeed(SharedRead):
    """The present marks.

    Args:
        changes: The change feed of the database.
    """

    def __init__(self, changes: ChangeFeed) -> None:
        super().__init__()
        self.marks: Marks | None = None
        """The marks; ``None`` before the first read."""
        self._changes = changes

    async def _read(self) -> bool:
        if await next_change(self._changes, MarksChanged(self.marks)) is None:
            return False
        self.marks = await run_in_threadpool(numbered, self._changes.store)
        return True


async def live_events(reads: SharedReads, *, heartbeat: float, is_signed_in: Callable[[], bool]) -> Events:
    """Stream the marks, first the present ones, until the session ends.

    Args:
        reads: The shared reads.
        heartbeat: Seconds after which the connection is kept open with a comment.
        is_signed_in: Returns whether the session still exists; asked before each event and comment.
    """
    known: Marks | None = None
    version = 0
    with reads.follow("marks", lambda: MarksFeed(reads.changes)) as feed:
        while not reads.stopping:
            is_changed = await feed.wait(version, heartbeat)
            if not await run_in_threadpool(is_signed_in):
                return
            if not is_changed:
                yield None
                continue
            version, now = feed.version, feed.marks
            if now is not None and now != known:
                known = now
                yield Event(name="marks", data=vars(now))
            await asyncio.sleep(PAUSE_SECONDS)
