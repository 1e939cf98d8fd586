"""Waiting of requests for the run that they start or continue."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from kneo.api.context import Waiting
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.store import idempotency
from kneo.store.change_feed import ChangeFeed, Subscription

T = TypeVar("T")


async def next_change(
    feed: ChangeFeed, subscription: Subscription[T], seconds: float, since: int | None = None
) -> T | None:
    """Wait for a change on the event loop; see ``ChangeFeed.wait_for``."""
    with feed.subscribe(subscription, since) as future:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            return None


async def settled_after(feed: ChangeFeed, waiting: Waiting[object], mark: int) -> SettledRun:
    """Wait for the run that an operation works on.

    Args:
        feed: The feed of changes.
        waiting: The run, and how long to wait.
        mark: A mark of the notifier from before the operation was called.
    """
    if waiting.settled is not None and waiting.seconds <= 0:
        return waiting.settled
    # An earlier execution of the request may have notified before the mark.
    since = mark if waiting.notified and idempotency.made() is None else None
    settled = await next_change(feed, waiting.settling, waiting.seconds, since)
    return (
        settled
        if settled is not None
        else await run_in_threadpool(read_settled_run, feed.store, waiting.settling.run_id)
    )
