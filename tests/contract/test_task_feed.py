"""The feed of task events: each once and in one order, whoever writes at the same time and wherever a reader begins again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from builders import build_task
from installation_key import find_key
from processes import at_once
from sqlalchemy import select, text

from kneo.clock import ManualClock
from kneo.errors import Conflict
from kneo.records.task import HumanTask
from kneo.store import prune, task_feed, tasks
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store
from kneo.store.tables import task_events


@pytest.fixture
def other(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """A second process on the same database."""
    made = open_store(migrated_url, clock, find_key)
    yield made
    made.close()


@pytest.fixture
def task(store: Store) -> HumanTask:
    made = build_task()
    with store.write() as tx:
        tasks.insert_task(tx, made)
    return made


def add(tx: Tx, task: HumanTask, word: str) -> None:
    tasks.add_event(tx, task, word, None, {})


def write(store: Store, task: HumanTask, word: str) -> None:
    with store.write() as tx:
        add(tx, task, word)


def read(store: Store, after: str | None) -> list[tuple[str, str]]:
    """Read like one who connects: everything after an event, as ids and words."""
    position = task_feed.find_cursor(store, after).position
    return [(event.id, event.type) for _, event in task_feed.events_after(store, position)]


def follow(stores: list[Store]) -> Iterator[str]:
    """Follow from the beginning, at another service each time, with a new connection for each single event."""
    seen = "0"
    for store in itertools.cycle(stores):
        position = task_feed.find_cursor(store, seen).position
        for _, event in task_feed.events_after(store, position, 1):
            seen = event.id
            yield event.type


def test_an_event_that_is_committed_late_comes_after_what_was_read_before(
    store: Store, task: HumanTask, clock: ManualClock
) -> None:
    write(store, task, "first")
    clock.advance(timedelta(seconds=-30))
    seen = read(store, "0")
    write(store, task, "late")  # with an earlier id than the one that was read
    with store.read() as tx:
        [late, first] = tx.connection.execute(select(task_events.c.id).order_by(task_events.c.id)).scalars()
    assert seen == [(first, "first")]
    assert read(store, first) == [(late, "late")]
    assert read(store, late) == []
    assert read(store, "0") == [(first, "first"), (late, "late")]


def test_a_transaction_that_is_open_while_others_are_read_loses_nothing(
    store: Store, other: Store, task: HumanTask
) -> None:
    """Where a database lets two write at once: the one that began first commits last."""
    if store.is_sqlite:
        pytest.skip("one transaction writes at a time")
    begun, read_meanwhile = threading.Event(), threading.Event()

    def slow() -> None:
        with other.write() as tx:
            add(tx, task, "slow")
            begun.set()
            assert read_meanwhile.wait(240)

    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(240)
    write(store, task, "quick")
    [(quick, word)] = read(store, "0")
    assert word == "quick"
    read_meanwhile.set()
    thread.join()
    assert [word for _, word in read(store, quick)] == ["slow"]
    assert [word for _, word in read(other, "0")] == ["quick", "slow"]


def test_numbering_that_waits_for_another_sees_what_that_one_committed(
    store: Store, other: Store, task: HumanTask
) -> None:
    for number in range(200):
        write(store, task, f"e{number}")
    at_once(8, lambda number: task_feed.number([store, other][number % 2]))
    with store.read() as tx:
        given = list(tx.connection.execute(select(task_events.c.seq).order_by(task_events.c.seq)).scalars())
        assert task_feed.last_position(tx) == 200
    assert given == list(range(1, 201))


def test_with_writers_at_the_same_time_each_event_is_read_once_by_a_reader_who_reconnects_at_each(
    store: Store, other: Store, task: HumanTask
) -> None:
    writers, each = 6, 20
    words = {f"w{writer}-{number}" for writer in range(writers) for number in range(each)}
    seen: list[str] = []

    def work(index: int) -> None:
        if index == writers:
            seen.extend(itertools.islice(follow([store, other]), len(words)))
            return
        for number in range(each):
            write([store, other][index % 2], task, f"w{index}-{number}")

    at_once(writers + 1, work)
    assert (len(seen), set(seen)) == (len(words), words)
    assert [word for _, word in read(other, "0")] == seen
    for writer in range(writers):
        own = [word for word in seen if word.startswith(f"w{writer}-")]
        assert own == [f"w{writer}-{number}" for number in range(each)]


def test_no_position_is_given_twice_when_events_are_deleted(store: Store, task: HumanTask, clock: ManualClock) -> None:
    write(store, task, "one")
    write(store, task, "two")
    assert len(read(store, "0")) == 2
    position = task_feed.find_cursor(store, None).position
    with store.write() as tx:
        tx.connection.execute(text("DELETE FROM task_events"))
    write(store, task, "three")
    assert [event.type for _, event in task_feed.events_after(store, position)] == ["three"]
    assert prune.prune_tasks(store, timedelta(days=1)) == 0


def test_a_reader_with_an_event_that_is_gone_is_told_so(store: Store, task: HumanTask) -> None:
    write(store, task, "one")
    with pytest.raises(Conflict) as caught:
        task_feed.find_cursor(store, "tev_gone")
    assert caught.value.code == "unknown_event"
    assert task_feed.find_cursor(store, "0").position == 0
    assert task_feed.find_cursor(store, None).position == 1


def test_more_events_than_one_transaction_numbers(
    store: Store, task: HumanTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_feed, "BATCH", 3)
    for number in range(8):
        write(store, task, f"e{number}")
    assert task_feed.number(store) == 8
    assert task_feed.number(store) == 0
    assert [word for _, word in read(store, "0")] == [f"e{number}" for number in range(8)]
