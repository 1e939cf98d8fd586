"""Waiting for runs: by notifications of this process, and by reads for the commits of other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from builders import build_run, build_task

from kneo.api.run_start import wait_for_run
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.wait import RunSettled, SettledRun
from kneo.service.context import next_change, settled_after
from kneo.store import change_feed, runs
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store, Tx

LONG = 240


@pytest.fixture
def feed(store: Store) -> Iterator[ChangeFeed]:
    with ChangeFeed(store) as made:
        yield made


def ended(store: Store, run: Run, *, notify: bool) -> Run:
    """End a run as its driver would, or as that of another process."""
    done = replace(run, status=RunStatus.SUCCEEDED, output_text="notified")

    def work(tx: Tx) -> None:
        stored = done if not notify else replace(done, output_text="stored")
        runs.insert_run(tx, stored)
        if notify:
            tx.notify(run.id, SettledRun(done))

    store.transact(work)
    return done


@pytest.mark.parametrize("when", ["before the wait", "during the wait"])
def test_a_notification_with_the_whole_change_is_the_result_without_a_read(
    store: Store, feed: ChangeFeed, when: str
) -> None:
    run = build_run()

    def begin() -> Run:
        if when == "before the wait":
            ended(store, run, notify=True)
        else:
            asyncio.run_coroutine_threadsafe(later(), loop)
        return run

    async def later() -> None:
        await asyncio.to_thread(ended, store, run, notify=True)

    async def wait() -> SettledRun:
        nonlocal loop
        loop = asyncio.get_running_loop()
        mark = store.notifier.mark()
        waiting = await asyncio.to_thread(wait_for_run, store, begin, LONG)
        return await settled_after(feed, waiting, mark)

    loop: asyncio.AbstractEventLoop
    assert asyncio.run(wait()).run.output_text == "notified"


def test_a_read_that_fails_is_repeated(
    feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(change_feed, "RETRY_SECONDS", 0.01)
    failures = [ValueError("a row that cannot be read")]

    class Sought(Subscription[str]):
        @classmethod
        def read(cls, tx: Tx, subscriptions: Sequence[Sought]) -> Sequence[str | None]:
            del tx
            if failures:
                raise failures.pop()
            return ["found" for _ in subscriptions]

    assert feed.wait_for(Sought(), LONG) == "found"
    assert "changes could not be read" in caplog.text


def test_another_processes_commit_is_read_however_busy_this_process_is(store: Store, feed: ChangeFeed) -> None:
    run = build_run()

    async def wait_all_the_time() -> None:
        while True:
            await next_change(feed, RunSettled("run_other"), 0.005)

    async def wait() -> SettledRun | None:
        busy = asyncio.create_task(wait_all_the_time())
        waiting = asyncio.create_task(next_change(feed, RunSettled(run.id), LONG, feed.store.notifier.mark()))
        await asyncio.to_thread(ended, store, run, notify=False)
        found = await waiting
        busy.cancel()
        with suppress(asyncio.CancelledError):
            await busy
        return found

    found = asyncio.run(wait())
    assert found is not None
    assert found.run.output_text == "notified"


@pytest.mark.parametrize(
    ("settling", "counts"),
    [
        (lambda run, _: RunSettled(run), True),
        (lambda run, _: RunSettled(run, epoch=3), True),
        (lambda run, _: RunSettled(run, epoch=4), False),
        (lambda run, _: RunSettled(run, answered="cont_before"), True),
        (lambda run, task: RunSettled(run, answered=task), False),
    ],
    ids=["new", "of this time", "of the time before", "asks something else", "asks what was answered"],
)
def test_a_notification_of_an_earlier_pause_does_not_count(
    settling: Callable[[str, str], RunSettled], counts: bool
) -> None:
    run = build_run(epoch=3, status=RunStatus.PAUSED)
    task = build_task(run_id=run.id)
    told = SettledRun(run, [task])
    assert settling(run.id, task.id).accept(told) == (told if counts else None)


def test_a_notification_without_the_change_requires_a_read() -> None:
    assert RunSettled("run_a").accept(None) is None
