"""Streams of one feed share its reads, on both databases: fifty cost the reads of one, and no caller gets more than its scope permits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing

import pytest
from builders import build_run, build_task
from console_load import statements
from sqlalchemy import event as engine_event

from kneo.api.operation import Principal
from kneo.errors import Transient
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.roles import EVERYTHING
from kneo.service.console.app import live_events
from kneo.service.event_streams import ReaderAccess, run_events, task_events
from kneo.service.events import Event, Events
from kneo.service.shared_reads import EVENTS_PER_READ, SharedReads
from kneo.store import history, runs, task_feed, tasks
from kneo.store.change_feed import ChangeFeed
from kneo.store.engine import Store, Tx

MANY = 50
ADMIN = Principal("ann", frozenset({EVERYTHING}))

LONG = 240


@pytest.fixture
def reads(store: Store) -> Iterator[SharedReads]:
    with ChangeFeed(store) as changes:
        yield SharedReads(changes)


@pytest.fixture
def run(store: Store) -> Run:
    made = build_run()
    with store.write() as tx:
        runs.insert_run(tx, made)
    return made


@pytest.fixture
def task(store: Store) -> HumanTask:
    made = build_task()
    with store.write() as tx:
        tasks.insert_task(tx, made)
    return made


def trace(store: Store, run: Run, first: int, last: int, **data: object) -> None:
    """Append trace events with these numbers to a run."""

    def work(tx: Tx) -> None:
        for number in range(first, last + 1):
            history.add_trace(tx, run.id, "step_completed", number=number, **data)

    store.transact(work)


def events_of(reads: SharedReads, run: Run, after: int = 0) -> Events:
    return run_events(reads, run.id, after, heartbeat=LONG, published=False)


async def take(stream: Events, count: int) -> list[Event]:
    """Take so many events of a stream, leaving out status and heartbeats."""
    taken = []
    while len(taken) < count:
        event = await anext(stream)
        if event is not None and event.name not in {"", "status"}:
            taken.append(event)
    return taken


def ids(events: list[Event]) -> list[str]:
    return [str(event.id) for event in events]


def scene(work: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), LONG))


def test_fifty_streams_of_a_run_cost_the_reads_of_one(store: Store, reads: SharedReads, run: Run) -> None:
    async def follow() -> None:
        streams = [events_of(reads, run) for _ in range(MANY)]
        waiting = [asyncio.create_task(take(stream, 3)) for stream in streams]
        with statements(store) as found:
            await asyncio.to_thread(trace, store, run, 1, 3)
            assert [ids(events) for events in await asyncio.gather(*waiting)] == [["1", "2", "3"]] * MANY
        assert len([one for one in found if "trace_events" in one and "data" in one]) <= 2
        assert len(reads) == 1
        for stream in streams:
            await stream.aclose()
        assert len(reads) == 0

    scene(follow)


def test_fifty_streams_of_the_inbox_cost_the_reads_of_one(store: Store, reads: SharedReads, task: HumanTask) -> None:
    async def follow() -> None:
        cursor = task_feed.find_cursor(store, None)
        streams = [
            task_events(reads, cursor, ReaderAccess(reads.changes, ADMIN, ()), heartbeat=LONG) for _ in range(MANY)
        ]
        waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
        with statements(store) as found:
            await asyncio.to_thread(store.transact, lambda tx: tasks.add_event(tx, task, "commented", "ann", {}))
            names = [event.name for events in await asyncio.gather(*waiting) for event in events]
        assert names == ["human.commented"] * MANY
        assert len([one for one in found if "task_events.data" in one]) <= 2
        for stream in streams:
            await stream.aclose()

    scene(follow)


def test_fifty_pages_of_the_console_cost_the_reads_of_one(store: Store, reads: SharedReads, run: Run) -> None:
    async def follow() -> None:
        pages = [live_events(reads, heartbeat=LONG, is_signed_in=lambda: True) for _ in range(MANY)]
        with statements(store) as found:
            first = await asyncio.gather(*(anext(page) for page in pages))
        assert len({json.dumps(vars(mark)["data"]) for mark in first}) == 1
        # One read of the change feed, and one after the task events are numbered.
        assert len([one for one in found if "max(runs.updated_at)" in one.lower()]) <= 3
        for page in pages:
            await page.aclose()

    scene(follow)


def test_a_stream_far_behind_reads_for_itself_and_meets_the_others(store: Store, reads: SharedReads, run: Run) -> None:
    many = 3 * EVENTS_PER_READ + 7

    async def follow() -> None:
        await asyncio.to_thread(trace, store, run, 1, many)
        ahead, behind = events_of(reads, run, many), events_of(reads, run)
        newest = asyncio.create_task(take(ahead, 2))
        assert ids(await take(behind, many)) == [str(number) for number in range(1, many + 1)]
        await asyncio.to_thread(trace, store, run, many + 1, many + 2)
        assert ids(await newest) == ids(await take(behind, 2)) == [str(many + 1), str(many + 2)]
        await ahead.aclose()
        await behind.aclose()

    scene(follow)


def test_no_stream_has_what_the_scope_does_not_permit(store: Store, reads: SharedReads, run: Run) -> None:
    """Nothing but redacted views is shared, so there is nothing that one caller could get through another one."""
    secret, person = "sk-ant-api03-" + "a1B2" * 10, "mara@example.com"

    async def follow() -> None:
        streams = [events_of(reads, run) for _ in range(3)]
        waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
        await asyncio.to_thread(trace, store, run, 1, 1, input_preview=f"{secret} for {person}")
        sent = [event.encoded.decode() for events in await asyncio.gather(*waiting) for event in events]
        assert len(set(sent)) == 1
        assert secret not in sent[0]
        assert person not in sent[0]
        [feed] = reads._reads.values()
        shared = repr(vars(feed))
        assert secret not in shared
        assert person not in shared
        for stream in streams:
            await stream.aclose()

    scene(follow)


def test_a_stream_reports_no_status_from_before_its_request(store: Store, reads: SharedReads, run: Run) -> None:
    """A stream whose client takes nothing leaves the shared state behind; the next one gets the present state."""

    async def follow() -> None:
        other = build_run(status=RunStatus.PAUSED)
        store.transact(lambda tx: runs.insert_run(tx, other))
        slow = events_of(reads, other)
        first = await anext(slow)
        assert first is not None
        assert first.data["status"] == "paused"

        def go_on(tx: Tx) -> None:
            history.add_trace(tx, other.id, "human_decided")
            _set_status(tx, other, RunStatus.RUNNING)

        await asyncio.to_thread(store.transact, go_on)
        fresh = run_events(reads, other.id, 1, since=1, heartbeat=LONG, published=False)
        said = await anext(fresh)
        assert said is not None
        assert said.data["status"] == "running"
        await slow.aclose()
        await fresh.aclose()

    scene(follow)


def _set_status(tx: Tx, run: Run, status: RunStatus) -> None:
    table = runs.runs
    tx.connection.execute(table.update().where(table.c.id == run.id).values(status=status))


def test_an_error_of_the_read_ends_the_streams_and_those_that_connect_again_go_on(
    store: Store, reads: SharedReads, run: Run
) -> None:
    broken = True

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if broken and "FROM trace_events" in statement:
            raise Transient("The database did not answer.", code="store_unavailable")

    async def follow() -> None:
        nonlocal broken
        streams = [events_of(reads, run) for _ in range(5)]
        waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
        await asyncio.to_thread(trace, store, run, 1, 1)
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in failed} == {Transient}
        assert len(reads) == 0
        broken = False
        async with aclosing(events_of(reads, run)) as again:
            assert ids(await take(again, 1)) == ["1"]

    engine_event.listen(store.engine, "before_cursor_execute", fail)
    try:
        scene(follow)
    finally:
        engine_event.remove(store.engine, "before_cursor_execute", fail)
