"""Deltas between readers and writers of one process and of several, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from installation_key import find_key
from kneo_process import eventually

from kneo.clock import ManualClock
from kneo.records.conversation import ModelDelta
from kneo.store.change_feed import READER_SECONDS, ReaderCache, announce_reader, list_read_runs
from kneo.store.deltas import MAX_OUTGOING, MAX_PAYLOAD_BYTES, DeltaHub, payloads, read_payload
from kneo.store.engine import Store
from kneo.store.migrate import open_store


def delta(text: str = "Hello ", offset: int = 0, **changes: object) -> ModelDelta:
    values: dict[str, object] = {"run_id": "run_1", "step_id": "draft", "request": 1, "offset": offset, "text": text}
    return ModelDelta(**values | changes)  # type: ignore[arg-type]


@pytest.fixture
def other(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """The store of another process."""
    opened = open_store(migrated_url, clock, find_key)
    yield opened
    opened.close()


def test_a_reader_receives_the_deltas_of_its_run_once(store: Store) -> None:
    received: list[ModelDelta] = []
    with store.deltas.listen("run_1", received.append):
        if store.deltas.spans_processes:
            assert store.deltas.listening.wait(240)
        store.deltas.publish(delta())
        store.deltas.publish(delta(run_id="run_2"))
        store.deltas.publish(delta(offset=6))
        assert received == [delta(), delta(offset=6)]
        assert store.deltas.has_listener("run_1")
        if store.deltas.spans_processes:
            # The connection gets what it sends to itself before what it sends later.
            seen: list[ModelDelta] = []
            with store.deltas.listen("run_3", seen.append):
                other_hub = DeltaHub(lambda: store.conninfo)
                other_hub.publish(delta(run_id="run_3"))
                eventually(lambda: seen)
                other_hub.close()
            assert received == [delta(), delta(offset=6)]
    store.deltas.publish(delta())
    assert len(received) == 2
    assert not store.deltas.has_listener("run_1")


def test_a_reader_in_another_process_receives_them_on_postgresql(store: Store, other: Store) -> None:
    received: list[ModelDelta] = []
    with other.deltas.listen("run_1", received.append):
        if not store.deltas.spans_processes:
            store.deltas.publish(delta())
            assert received == []
            return
        assert other.deltas.listening.wait(240)
        text = "".join(f"{number} ü\n" for number in range(2_000))
        store.deltas.publish(delta(text))
        eventually(lambda: sum(len(one.text) for one in received) == len(text))
        assert "".join(one.text for one in received) == text
        offset = 0
        for one in received:
            assert one.offset == offset
            offset += len(one.text)


def test_readers_are_announced_for_a_minute(store: Store, other: Store, clock: ManualClock) -> None:
    def announce(run_id: str) -> None:
        store.transact(lambda tx: announce_reader(tx, run_id))

    def known() -> frozenset[str]:
        with store.read() as tx:
            return list_read_runs(tx)

    announce("run_1")
    clock.advance(timedelta(seconds=READER_SECONDS / 2))
    announce("run_2")
    announce("run_1")
    cache = ReaderCache(other)
    cache.refresh()
    eventually(lambda: cache.is_read("run_1"))
    clock.advance(timedelta(seconds=READER_SECONDS))
    assert known() == {"run_1", "run_2"}
    clock.advance(timedelta(seconds=1))
    assert known() == frozenset()
    cache.refresh()
    eventually(lambda: not cache.is_read("run_1"))
    with other.deltas.listen("run_1", lambda _: None):
        assert cache.is_read("run_1")


@pytest.mark.parametrize("text", ["x" * 5_000, "\x01" * 5_000, "字" * 5_000, '"\\' * 2_500])
def test_notifications_fit_and_are_put_together_again(text: str) -> None:
    sent = list(payloads(delta(text, offset=7), "here"))
    assert all(len(payload.encode()) <= MAX_PAYLOAD_BYTES for payload in sent)
    found = [read_payload(payload, "there") for payload in sent]
    assert "".join(one.text for one in found if one is not None) == text
    assert found[0] is not None
    assert found[0].offset == 7
    assert read_payload(sent[0], "here") is None


def test_what_fits_nowhere_is_dropped() -> None:
    assert list(payloads(delta(step_id="s" * 8_000), "here")) == []
    assert list(payloads(delta("a\0b"), "here")) == []


def test_half_of_a_surrogate_pair_does_not_stop_the_sender() -> None:
    [payload] = payloads(delta("wait \ud83d"), "there")
    assert read_payload(payload.encode().decode(), "here") == delta("wait ?")


@pytest.mark.parametrize(
    "payload", ["", "[]", "{}", '{"origin": "x"}', json.dumps({"origin": "x", "more": 1}), "nonsense"]
)
def test_foreign_notifications_are_ignored(payload: str) -> None:
    assert read_payload(payload, "here") is None


def test_a_server_that_is_gone_stops_nobody() -> None:
    hub = DeltaHub(lambda: "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    received: list[ModelDelta] = []
    with hub.listen("run_1", received.append):
        for number in range(2 * MAX_OUTGOING):
            hub.publish(delta(offset=number))
    assert len(received) == 2 * MAX_OUTGOING
    hub.close()
