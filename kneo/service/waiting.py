"""Waiting of requests for the run that they start or continue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from kneo.api.context import Waiting
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.wait import RunSettled, SettledRun, read_settled_run
from kneo.store import idempotency
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store
from kneo.tasks.inbox import find

T = TypeVar("T")

SYNC_SECONDS = 120.0
"""The default time that a request waits for its run; afterwards the response has the running run."""


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
    return await _settled_after(feed, waiting.settling, waiting.seconds, since)


async def answered(feed: ChangeFeed, answer: Callable[[], HumanTask]) -> tuple[HumanTask, SettledRun]:
    """Answer a task, then wait until its run waits for people again or has ended."""
    mark = feed.store.notifier.mark()
    task = await taken(feed, answer)
    # A vote that decides nothing does not signal the run, so no notification comes.
    since = mark if task.status not in UNRESOLVED and idempotency.made() is None else None
    return task, await _settled_after(feed, RunSettled(task.run_id, answered=task.id), SYNC_SECONDS, since)


async def taken(feed: ChangeFeed, answer: Callable[[], HumanTask]) -> HumanTask:
    """Answer a task; where an earlier request with the same key has done so, read that task."""
    made = idempotency.made()
    return await run_in_threadpool(answer if made is None else partial(_task, feed.store, made))


def _task(store: Store, task_id: str) -> HumanTask:
    with store.read() as tx:
        return find(tx, task_id)


async def _settled_after(feed: ChangeFeed, settling: RunSettled, seconds: float, since: int | None) -> SettledRun:
    settled = await next_change(feed, settling, seconds, since)
    return settled if settled is not None else await run_in_threadpool(read_settled_run, feed.store, settling.run_id)
