"""The journal of agents on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from builders import build_run
from sqlalchemy import select

from kneo.clock import ManualClock
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import RunStatus
from kneo.store import agent_journal, runs
from kneo.store.agent_journal import ConversationTooLong, JournalLimits
from kneo.store.engine import Store
from kneo.store.prune import prune_runs
from kneo.store.tables import agent_journal as table

AT = "2026-01-31T00:00:00.000000+00:00"
RUN = "run_1"


def reply(number: int, conversation: str = "draft~0", **changes: object) -> ConversationEntry:
    entry = ConversationEntry(
        conversation=conversation,
        name=f"model:{number}",
        number=number,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"messages": [{"text": "é" * number}]},
        facts={"input_tokens": number},
        started_at=AT,
        completed_at=AT,
    )
    return replace(entry, **changes)


def call(name: str, status: EntryStatus, conversation: str = "draft~0", **body: object) -> ConversationEntry:
    return ConversationEntry(
        conversation=conversation,
        name=f"tool:{name}",
        number=1,
        kind=EntryKind.TOOL,
        status=status,
        body=body,
        started_at=AT,
        completed_at=AT if status is not EntryStatus.BEGUN else None,
    )


def write(store: Store, *entries: ConversationEntry, run: str = RUN, limits: JournalLimits | None = None) -> None:
    with store.write() as tx:
        agent_journal.append(tx, run, entries, limits or JournalLimits())


def load(store: Store, conversation: str = "draft~0", run: str = RUN) -> tuple[ConversationEntry, ...]:
    with store.read() as tx:
        return agent_journal.load(tx, run, conversation)


def test_a_conversation_is_read_as_it_was_written(store: Store) -> None:
    entries = [reply(1), call("1.a", EntryStatus.BEGUN, amount=5), reply(2), reply(10)]
    write(store, *entries[:2])
    write(store, *entries[2:])
    write(store, reply(1, conversation="other~0"))
    write(store, reply(7), run="run_2")
    assert load(store) == tuple(entries)
    assert load(store, "draft~1") == ()


def test_a_later_entry_of_the_same_name_takes_the_place_of_the_earlier_one(store: Store) -> None:
    write(store, reply(1), call("1.a", EntryStatus.BEGUN), call("1.b", EntryStatus.BEGUN))
    write(store, call("1.b", EntryStatus.DONE, result="b"))
    write(store, call("1.a", EntryStatus.DONE, result="a"), reply(2))
    assert [(entry.name, entry.status.value, entry.body.get("result")) for entry in load(store)] == [
        ("model:1", "done", None),
        ("tool:1.a", "done", "a"),
        ("tool:1.b", "done", "b"),
        ("model:2", "done", None),
    ]


def test_equal_names_of_two_conversations_are_two_entries(store: Store) -> None:
    write(store, reply(1, "a~0", body={"x": 1}), reply(1, "b~0", body={"x": 2}))
    assert [load(store, name)[0].body for name in ("a~0", "b~0")] == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize(("size", "first"), [(100, b"{"), (10_000, b"\x78")])
def test_large_bodies_are_compressed(store: Store, size: int, first: bytes) -> None:
    entry = reply(1, body={"text": "x" * size})
    write(store, entry)
    assert load(store) == (entry,)
    with store.read() as tx:
        stored = bytes(tx.connection.execute(select(table.c.body)).scalar_one())
    assert stored[:1] == first
    assert len(stored) < 200


def test_a_conversation_that_is_too_long_is_refused_whole(store: Store) -> None:
    limits = JournalLimits(conversation_entries=3)
    write(store, reply(1), call("1.a", EntryStatus.BEGUN), reply(2), limits=limits)
    write(store, call("1.a", EntryStatus.DONE), limits=limits)
    with pytest.raises(ConversationTooLong, match="limited to 3 entries") as refused:
        write(store, reply(3), limits=limits)
    assert refused.value.code == "conversation_too_long"
    write(store, reply(1, "other~0"), limits=limits)
    assert [entry.name for entry in load(store)] == ["model:1", "tool:1.a", "model:2"]


def test_the_conversations_of_a_run_have_a_limit_together(store: Store) -> None:
    limits = JournalLimits(run_entries=2)
    write(store, reply(1, "a~0"), reply(1, "b~0"), limits=limits)
    with pytest.raises(ConversationTooLong, match="2 entries in a run"):
        write(store, reply(1, "c~0"), limits=limits)
    write(store, reply(1, "a~0"), limits=limits)
    write(store, reply(1), run="run_2", limits=limits)


def test_a_body_that_is_too_large_is_refused(store: Store) -> None:
    with pytest.raises(ConversationTooLong, match="100 bytes"):
        write(store, reply(1, body={"text": "x" * 100}), limits=JournalLimits(body_bytes=100))
    assert load(store) == ()


def test_conversations_are_copied_with_those_of_agents_behind_their_tools(store: Store) -> None:
    names = ("a~0", "a~1", "a~0>1.c", "ab~0", "a~0~0", "b>a~0")
    write(store, reply(2, "a~0"), *(reply(1, name) for name in names))
    with store.write() as tx:
        agent_journal.copy(tx, RUN, "run_2", ["a", "b>a"])
    with store.read() as tx:
        copied = agent_journal.list_entries(tx, "run_2")
    assert [(entry.conversation, entry.name) for entry in copied] == [
        ("a~0", "model:2"),
        ("a~0", "model:1"),
        ("a~0>1.c", "model:1"),
        ("a~1", "model:1"),
        ("b>a~0", "model:1"),
    ]
    assert load(store, "a~0") == load(store, "a~0", "run_2")


def test_the_journal_is_deleted_with_its_run(store: Store, clock: ManualClock) -> None:
    ended, running = build_run(status=RunStatus.SUCCEEDED), build_run()
    with store.write() as tx:
        runs.insert_run(tx, ended)
        runs.insert_run(tx, running)
    write(store, reply(1), run=ended.id)
    write(store, reply(1), run=running.id)
    clock.advance(timedelta(days=2))
    assert prune_runs(store, timedelta(days=1)) == 1
    assert load(store, run=ended.id) == ()
    assert len(load(store, run=running.id)) == 1
