"""Sessions of agents on both databases."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from installation_key import find_key
from sqlalchemy import event, insert, select, text, update

from kneo.clock import ManualClock
from kneo.errors import Untrusted
from kneo.records.agent_session import FinishedTurn, SessionKey, SessionMessage
from kneo.store import agent_sessions
from kneo.store.authenticated import COVERED, with_mac
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import agent_sessions as agent_sessions_table
from kneo.store.tables import session_messages, session_summaries
from kneo.trust.sealing import NO_KEYS, DataKeys, JournalSealed

ANN = SessionKey(environment="prod", requester="ann", session_id="s")


def turn(user: str = "Hi.", assistant: str = "Hello.", agent: str = "support") -> FinishedTurn:
    return FinishedTurn(agent=agent, user=user, assistant=assistant)


def add(store: Store, *turns: FinishedTurn, key: SessionKey = ANN, run: str = "run_1") -> None:
    store.transact(lambda tx: agent_sessions.append(tx, key, run, turns))


def read(
    store: Store, key: SessionKey = ANN, agent: str = "support", limit: int = 100, **more: object
) -> list[SessionMessage]:
    with store.read() as tx:
        return list(agent_sessions.newest_messages(tx, key, agent, limit=limit, **more))  # type: ignore[arg-type]


def texts(store: Store, key: SessionKey = ANN, **more: object) -> list[str]:
    return [message.text for message in read(store, key, **more)]  # type: ignore[arg-type]


def test_the_newest_messages_of_an_agent_are_read_in_their_order(store: Store) -> None:
    add(store, turn("1", "2"), turn("x", "y", "other"))
    add(store, turn("3", "4"), run="run_2")
    messages = read(store)
    assert [message.text for message in messages] == ["1", "2", "3", "4"]
    assert [message.role for message in messages] == ["user", "assistant"] * 2
    assert [message.number for message in messages] == [1, 2, 5, 6]
    assert texts(store, limit=3) == ["2", "3", "4"]
    assert texts(store, after=2) == ["3", "4"]
    assert texts(store, without_run="run_2") == ["1", "2"]
    assert texts(store, agent="other") == ["x", "y"]


@pytest.mark.parametrize("part", ["environment", "requester", "session_id"])
def test_a_session_of_the_same_name_is_not_seen_elsewhere(store: Store, part: str) -> None:
    add(store, turn())
    other = replace(ANN, **{part: "other"})
    assert texts(store, other) == []
    assert store.transact(lambda tx: agent_sessions.delete_session(tx, other)) is None
    assert store.transact(lambda tx: agent_sessions.prune(tx, timedelta(0))) == 0
    assert texts(store) == ["Hi.", "Hello."]


def test_a_text_that_is_too_long_is_cut(store: Store) -> None:
    add(store, turn("x" * (agent_sessions.MAX_TEXT_CHARS + 7)))
    assert texts(store)[0].endswith(f"x[cut: {agent_sessions.MAX_TEXT_CHARS + 7} characters in all]")


def test_runs_that_end_at_the_same_time_get_numbers_of_their_own(migrated_url: str, clock: ManualClock) -> None:
    stores = [open_store(migrated_url, clock, find_key) for _ in range(4)]
    starting = threading.Barrier(4)

    def end_runs(number: int) -> None:
        starting.wait(120)
        for _ in range(5):
            add(stores[number], turn(f"u{number}", f"a{number}"), run=f"run_{number}")

    threads = [threading.Thread(target=end_runs, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    messages = read(stores[0])
    assert [message.number for message in messages] == list(range(1, 41))
    # The two messages of a turn stay together.
    assert all(user.text[1:] == answer.text[1:] for user, answer in zip(messages[::2], messages[1::2], strict=True))
    for store in stores:
        store.close()


def test_a_summary_is_kept_only_where_it_reaches_further(store: Store) -> None:
    add(store, turn("1", "2"), turn("3", "4"))
    second, fourth = read(store)[1::2]

    def keep(last: SessionMessage, text: str) -> bool:
        return store.transact(lambda tx: agent_sessions.keep_summary(tx, ANN, last, text))

    assert keep(fourth, "all") is True
    assert keep(second, "half") is False
    assert keep(replace(fourth, run_id="run_9"), "of a deleted session") is False
    with store.read() as tx:
        summary = agent_sessions.find_summary(tx, ANN, "support")
        assert agent_sessions.find_summary(tx, ANN, "other") is None
    assert summary is not None
    assert (summary.number, summary.text) == (4, "all")


def test_a_deleted_session_leaves_nothing_and_no_summary_brings_it_back(store: Store) -> None:
    add(store, turn("1", "2"))
    last = read(store)[-1]
    store.transact(lambda tx: agent_sessions.keep_summary(tx, ANN, last, "all"))
    assert store.transact(lambda tx: agent_sessions.delete_session(tx, ANN)) == 2
    assert store.transact(lambda tx: agent_sessions.keep_summary(tx, ANN, last, "late")) is False
    with store.read() as tx:
        assert agent_sessions.find_summary(tx, ANN, "support") is None
        assert agent_sessions.list_sessions(tx, "ann", limit=10) == ((), 0)
    assert texts(store) == []
    add(store, turn("again", "yes"), run="run_2")
    assert [message.number for message in read(store)] == [1, 2]


def test_sessions_are_listed_by_requester_and_deleted_when_they_are_old(store: Store, clock: ManualClock) -> None:
    add(store, turn())
    clock.advance(timedelta(days=2))
    add(store, turn(), turn(), key=replace(ANN, environment="", session_id="t"))
    add(store, turn(), key=replace(ANN, requester="bob"))
    with store.read() as tx:
        page, total = agent_sessions.list_sessions(tx, "ann", limit=10)
        assert [(each.key.environment, each.key.session_id, each.messages) for each in page] == [
            ("", "t", 4),
            ("prod", "s", 2),
        ]
        assert total == 2
        assert [each.key.session_id for each in agent_sessions.list_sessions(tx, "ann", limit=1, offset=1)[0]] == ["s"]
        assert agent_sessions.list_sessions(tx, "ann", environment="prod", limit=10)[1] == 1
    assert store.transact(lambda tx: agent_sessions.prune(tx, timedelta(days=1))) == 1
    with store.read() as tx:
        assert [each.key.session_id for each in agent_sessions.list_sessions(tx, "ann", limit=10)[0]] == ["t"]
        assert agent_sessions.list_sessions(tx, "bob", limit=10)[1] == 1


def test_sealed_texts_are_unreadable_in_the_database(migrated_url: str, clock: ManualClock) -> None:
    sealed = open_store(migrated_url, clock, find_key, data_keys=DataKeys([b"k" * 32]))
    add(sealed, turn("a private sentence", "a private answer"))
    [*_, last] = read(sealed)
    sealed.transact(lambda tx: agent_sessions.keep_summary(tx, ANN, last, "a private summary"))
    with sealed.read() as tx:
        stored = [tx.connection.execute(select(table)).all() for table in (session_messages, session_summaries)]
        summary = agent_sessions.find_summary(tx, ANN, "support")
        listed, total = agent_sessions.list_messages(tx, ANN, limit=1, offset=1)
    assert b"private" not in b"".join(bytes(row.sealed) for rows in stored for row in rows)
    assert {row.text for rows in stored for row in rows} == {""}
    assert texts(sealed) == ["a private sentence", "a private answer"]
    assert (summary is not None and summary.text, [each.text for each in listed], total) == (
        "a private summary",
        ["a private answer"],
        2,
    )
    without = open_store(migrated_url, clock, find_key)
    with pytest.raises(JournalSealed):
        read(without)
    with sealed.write() as tx:
        swapped = session_messages.c.number == 1
        tx.connection.execute(update(session_messages).where(swapped).values(sealed=stored[0][1].sealed))
    with pytest.raises(Untrusted):
        read(sealed)
    for store in (without, sealed):
        store.close()


def test_plain_texts_from_before_stay_readable(migrated_url: str, clock: ManualClock) -> None:
    plain, sealed = (
        open_store(migrated_url, clock, find_key, data_keys=keys) for keys in (NO_KEYS, DataKeys([b"k" * 32]))
    )
    add(plain, turn("one", "1"))
    add(sealed, turn("two", "2"), run="run_2")
    assert texts(sealed) == ["one", "1", "two", "2"]
    for store in (plain, sealed):
        store.close()


def test_one_of_ten_thousand_sessions_is_read_without_the_others(store: Store) -> None:
    add(store, turn("1", "2"))
    with store.write() as tx:
        for table in (agent_sessions_table, session_messages):
            row = dict(tx.connection.execute(select(table).limit(1)).mappings().one())
            copies = [
                row | {"session_id": f"s{number}", "requester": f"person-{number % 100}"} for number in range(10_000)
            ]
            covered = table.name in COVERED
            tx.connection.execute(insert(table), [with_mac(tx, table, copy) if covered else copy for copy in copies])
        if not store.is_sqlite:
            tx.connection.execute(text("ANALYZE"))
    key = SessionKey(environment="prod", requester="person-7", session_id="s7")
    statements: list[tuple[str, object]] = []

    def seen(_connection: object, _cursor: object, statement: str, parameters: object, *_more: object) -> None:
        statements.append((statement, parameters))

    with store.read() as tx:
        event.listen(tx.connection, "before_cursor_execute", seen)
        agent_sessions.newest_messages(tx, key, "support", limit=100)
        agent_sessions.list_messages(tx, key, limit=10)
        page, total = agent_sessions.list_sessions(tx, "person-7", limit=10)
        event.remove(tx.connection, "before_cursor_execute", seen)
        assert (len(page), total) == (10, 100)
        explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
        plans = [
            str(row[-1])
            for statement, parameters in statements
            for row in tx.connection.exec_driver_sql(explain + statement, parameters).all()  # type: ignore[arg-type]
        ]
    assert len(statements) >= 4
    assert not [step for step in plans if step.startswith("SCAN") or "Seq Scan" in step], plans
