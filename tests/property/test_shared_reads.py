"""Shared reads of events: every stream gets each event once and in order, whenever it joins, however slow it is, whatever is deleted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.errors import Transient
from kneo.service import shared_reads
from kneo.service.events import Event
from kneo.service.shared_reads import EventBuffer, Positioned, SharedReads
from kneo.store.change_feed import ChangeFeed

PAGE = 5


class Numbers(EventBuffer):
    """A feed in memory, whose events are numbers from 1 on."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[int] = []
        self.last = 0
        self.added = asyncio.Event()
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def add(self) -> None:
        self.last += 1
        self.stored.append(self.last)
        self.added.set()

    async def _read(self) -> bool:
        if self._take_move():
            return True
        end = self._end
        while self.last <= end:
            self.added.clear()
            await self.added.wait()
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise Transient("The database did not answer.", code="store_unavailable")
        await self._extend(self.last)
        return True

    def _page(self, position: int) -> Sequence[Positioned]:
        page = [number for number in self.stored if number > position][:PAGE]
        return [Positioned(number, Event(name="number", data={"number": number})) for number in page]


@pytest.fixture(scope="module", autouse=True)
def small_pages() -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared_reads, "EVENTS_PER_READ", PAGE)
        yield


async def follow(reads: SharedReads, feed: Numbers, after: int, until: int, random: Random) -> list[int]:
    """Follow a feed, with pauses of random lengths, until a number has come; return the numbers in the order received."""
    seen: list[int] = []
    with reads.follow("numbers", lambda: feed):
        feed.join(after)
        while after < until:
            version = feed.version
            async for item in feed.events(after):
                seen.append(item.position)
                after = item.position
                for _ in range(random.choice((0, 0, 3, 20))):
                    await asyncio.sleep(0)
            if after < until:
                await feed.wait(version, 240)
    return seen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 60))
def test_each_stream_gets_each_event_once_and_in_order(seed: int, joins: list[int], count: int) -> None:
    """Streams join after what exists then, some at an earlier event, and some leave early."""

    async def scene() -> None:
        random, reads, feed, begun = Random(seed), SharedReads(_no_changes()), Numbers(), []

        async def join() -> None:
            after = random.randint(0, feed.last)
            until = count if random.random() < 0.7 else random.randint(after, count)
            seen = await follow(reads, feed, after, until, random)
            # A stream that leaves early has what it wanted, and may have more of the same page.
            assert seen == list(range(after + 1, after + 1 + len(seen)))
            assert after + len(seen) >= until

        # One stream keeps the feed, as long as events come.
        begun.append(asyncio.create_task(follow(reads, feed, 0, count, random)))
        for number in range(1, count + 1):
            feed.add()
            begun.extend(asyncio.create_task(join()) for at in joins if at % count + 1 == number)
            for _ in range(random.choice((0, 1, 15))):
                await asyncio.sleep(0)
            assert len(feed._events) <= PAGE
        results = await asyncio.gather(*begun)
        assert results[0] == list(range(1, count + 1))
        assert len(reads) == 0, "a feed without streams is dropped"

    asyncio.run(asyncio.wait_for(scene(), 240))


@given(st.sets(st.integers(1, 30)), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_deleted_events_are_left_out_and_hold_no_stream(deleted: set[int], after: int) -> None:
    async def scene() -> None:
        feed, reads = Numbers(), SharedReads(_no_changes())
        for _ in range(30):
            feed.add()
        feed.stored = [number for number in feed.stored if number not in deleted]
        feed.add()
        assert await follow(reads, feed, after, 31, Random(0)) == [n for n in feed.stored if n > after]

    asyncio.run(asyncio.wait_for(scene(), 240))


def test_one_read_serves_all_streams_that_wait() -> None:
    async def scene() -> None:
        feed, reads = Numbers(), SharedReads(_no_changes())
        pages = itertools.count()
        read, feed._page = feed._page, lambda position: (next(pages), read(position))[1]  # type: ignore[method-assign]
        following = [asyncio.create_task(follow(reads, feed, 0, 3, Random(n))) for n in range(50)]
        for _ in range(3):
            feed.add()
        assert await asyncio.gather(*following) == [[1, 2, 3]] * 50
        assert next(pages) == 1

    asyncio.run(asyncio.wait_for(scene(), 240))


def test_an_error_of_the_read_ends_each_stream_that_waits_and_the_next_one_reads_again() -> None:
    async def scene() -> None:
        feed, reads = Numbers(), SharedReads(_no_changes())
        feed.failures = 1
        feed.gate.clear()
        following = [asyncio.create_task(follow(reads, feed, 0, 1, Random(n))) for n in range(10)]
        feed.add()
        await asyncio.sleep(0)
        feed.gate.set()
        failed = await asyncio.gather(*following, return_exceptions=True)
        assert [type(error) for error in failed] == [Transient] * 10
        assert len(reads) == 0
        assert await follow(reads, feed, 0, 1, Random(0)) == [1]

    asyncio.run(asyncio.wait_for(scene(), 240))


def test_a_stream_that_leaves_does_not_end_the_read_of_the_others() -> None:
    async def scene() -> None:
        feed, reads = Numbers(), SharedReads(_no_changes())
        first, second = (asyncio.create_task(follow(reads, feed, 0, 1, Random(n))) for n in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        feed.add()
        assert await second == [1]

    asyncio.run(asyncio.wait_for(scene(), 240))


def _no_changes() -> ChangeFeed:
    """A change feed that is not used: these feeds are in memory."""
    return ChangeFeed.__new__(ChangeFeed)
