"""The stream of marks: it reports that something changed, never what; a page with that mark asks for itself again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from kneo.service.context import next_change
from kneo.service.events import Event, Events
from kneo.store.change_feed import ChangeFeed
from kneo.store.marks import Marks, MarksChanged, numbered

PAUSE_SECONDS = 0.5
"""The shortest time between two events, which bounds how often pages are asked for."""


async def live_events(feed: ChangeFeed, *, heartbeat: float, is_signed_in: Callable[[], bool]) -> Events:
    """Stream the marks, first the present ones, until the session ends.

    Args:
        feed: The feed of changes.
        heartbeat: Seconds after which the connection is kept open with a comment.
        is_signed_in: Returns whether the session still exists; asked before each event and comment.
    """
    known: Marks | None = None
    while not feed.stopping:
        changed = await next_change(feed, MarksChanged(known), heartbeat)
        if not await run_in_threadpool(is_signed_in):
            return
        if changed is None:
            yield None
            continue
        now = await run_in_threadpool(numbered, feed.store)
        if now != known:
            known = now
            yield Event(name="marks", data=vars(now))
        await asyncio.sleep(PAUSE_SECONDS)
