"""Waiting for runs: what is told in this process, what is found in the database, and what is too late to count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from builders import build_run, build_task

from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.wait import Settled
from kneo.service.change_feed import News
from kneo.service.run_news import Settling, begun
from kneo.store import runs
from kneo.store.engine import Store, Tx

LONG = 20


@pytest.fixture
def news(store: Store) -> Iterator[News]:
    made = News(store)
    yield made
    made.stop()


def ended(store: Store, run: Run, *, tell: bool) -> Run:
    """End a run as its driver would, or as that of another process."""
    done = replace(run, status=RunStatus.SUCCEEDED, output_text="told")

    def work(tx: Tx) -> None:
        stored = done if not tell else replace(done, output_text="stored")
        runs.insert_run(tx, stored)
        if tell:
            tx.tell(run.id, Settled(done))

    store.transact(work)
    return done


@pytest.mark.parametrize("when", ["before anybody listens", "while somebody waits"])
def test_what_is_told_is_the_answer_without_a_look(store: Store, news: News, when: str) -> None:
    run = build_run()

    def begin() -> Run:
        if when == "before anybody listens":
            ended(store, run, tell=True)
        else:
            asyncio.run_coroutine_threadsafe(later(), loop)
        return run

    async def later() -> None:
        await asyncio.to_thread(ended, store, run, tell=True)

    async def wait() -> Settled:
        nonlocal loop
        loop = asyncio.get_running_loop()
        return await begun(news, begin, LONG)

    loop: asyncio.AbstractEventLoop
    assert asyncio.run(wait()).run.output_text == "told"


def test_what_another_process_did_is_heard_however_much_is_asked_here(store: Store, news: News) -> None:
    run = build_run()

    async def ask_all_the_time() -> None:
        while True:
            await news.hear(Settling("run_other"), 0.005)

    async def wait() -> Settled | None:
        busy = asyncio.create_task(ask_all_the_time())
        waiting = asyncio.create_task(news.hear(Settling(run.id), LONG, news.mark()))
        await asyncio.to_thread(ended, store, run, tell=False)
        found = await waiting
        busy.cancel()
        with suppress(asyncio.CancelledError):
            await busy
        return found

    found = asyncio.run(wait())
    assert found is not None
    assert found.run.output_text == "told"


@pytest.mark.parametrize(
    ("settling", "counts"),
    [
        (lambda run, _: Settling(run), True),
        (lambda run, _: Settling(run, epoch=3), True),
        (lambda run, _: Settling(run, epoch=4), False),
        (lambda run, _: Settling(run, answered="cont_before"), True),
        (lambda run, task: Settling(run, answered=task), False),
    ],
    ids=["new", "of this time", "of the time before", "asks something else", "asks what was answered"],
)
def test_news_of_what_was_before_does_not_count(settling: Callable[[str, str], Settling], counts: bool) -> None:
    run = build_run(epoch=3, status=RunStatus.PAUSED)
    task = build_task(run_id=run.id)
    told = Settled(run, [task])
    assert settling(run.id, task.id).heed(told) == (told if counts else None)


def test_news_without_everything_sends_to_the_database() -> None:
    assert Settling("run_a").heed(None) is None
