"""Statements that are handed to the driver as they are do what SQLAlchemy would do with them."""

from __future__ import annotations

import pytest
from sqlalchemy import bindparam, event, insert, select, update
from sqlalchemy.exc import IntegrityError

from kneo.errors import Invalid, Transient
from kneo.store.engine import Store, Tx
from kneo.store.prepared import FEW_ROWS, Prepared
from kneo.store.tables import requests as table

INSERT = Prepared(insert(table))
GET = Prepared(select(table).where(table.c.id == bindparam("of_id"), table.c.kind == "reconcile"))
ALL = Prepared(select(table.c.id, table.c.payload).order_by(table.c.id).limit(bindparam("most")))
CHANGE = Prepared(update(table).where(table.c.id == bindparam("of_id")))


def row(name: str = "a", **changed: object) -> dict[str, object]:
    usual = {column.name: None for column in table.columns}
    given = {
        "kind": "reconcile",
        "payload": {"n": 1, "text": "ä"},
        "actor": "ann",
        "status": "open",
        "created_at": "now",
    }
    return usual | {name: value for name, value in given.items() if name in usual} | {"id": name} | changed


def test_what_is_written_is_read_either_way(store: Store) -> None:
    with store.write() as tx:
        assert INSERT.change(tx, row()) == 1
        tx.connection.execute(insert(table), row("b"))
        for name in "ab":
            found = GET.first(tx, {"of_id": name})
            usual = tx.connection.execute(select(table).where(table.c.id == name)).one()
            assert found._asdict() == usual._asdict()
            assert found.payload == {"n": 1, "text": "ä"}


def test_many_are_written_at_once(store: Store) -> None:
    with store.write() as tx:
        INSERT.change_many(tx, [])
        INSERT.change_many(tx, [row(name) for name in "cab"])
        assert [found.id for found in ALL.rows(tx, {"most": 2})] == ["a", "b"]


def test_a_change_says_how_many_it_was_about(store: Store) -> None:
    with store.write() as tx:
        INSERT.change(tx, row())
        assert CHANGE.change(tx, {"of_id": "a", "payload": [None]}) == 1
        assert CHANGE.change(tx, {"of_id": "b", "payload": []}) == 0
        assert CHANGE.change(tx, {"of_id": "a", "actor": "bob"}) == 1
        found = GET.first(tx, {"of_id": "a"})
        assert (found.payload, found.actor) == ([None], "bob")
        assert GET.first(tx, {"of_id": "b"}) is None


def test_a_parameter_that_is_missing_is_not_null(store: Store) -> None:
    with store.read() as tx, pytest.raises(KeyError, match="of_id"):
        GET.first(tx, {})


def test_an_error_is_spelled_as_usual_and_shows_no_values(store: Store) -> None:
    with pytest.raises(IntegrityError) as failed, store.write() as tx:  # noqa: PT012 - the second one fails
        INSERT.change(tx, row(actor="private"))
        INSERT.change(tx, row(actor="private"))
    assert "private" not in str(failed.value)
    with pytest.raises(Invalid, match="cannot be stored"), store.write() as tx:
        INSERT.change(tx, row(actor="half a character \ud800"))


def test_a_server_that_ends_the_session_did_not_answer(store: Store) -> None:
    if store.is_sqlite:
        pytest.skip("a file has no sessions")
    with pytest.raises(Transient), store.write() as tx:  # noqa: PT012 - the last one fails
        session = tx.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with store.write() as other:
            other.connection.exec_driver_sql(f"SELECT pg_terminate_backend({session}, 60000)")
        GET.first(tx, {"of_id": "a"})
    with store.read() as tx:
        assert GET.first(tx, {"of_id": "a"}) is None


def test_listeners_of_the_engine_are_called_for_prepared_statements(store: Store) -> None:
    few = FEW_ROWS[store.engine.dialect.name]
    calls: list[tuple[str, bool]] = []

    def listen(_connection, _cursor, statement, _values, _context, many) -> None:
        calls.append((statement.split()[0], many))

    event.listen(store.engine, "before_cursor_execute", listen)
    event.listen(store.engine, "after_cursor_execute", listen)
    with store.write() as tx:
        calls.clear()
        INSERT.change(tx, row())
        INSERT.change_many(tx, [row(str(number)) for number in range(few)])
        INSERT.change_many(tx, [row(f"more {number}") for number in range(few + 1)])
    written = [one for one in calls if one[0] == "INSERT"]
    assert written == [("INSERT", False)] * 2 * (1 + few) + [("INSERT", True)] * 2


def test_inserts_that_wait_are_seen_by_every_later_statement(store: Store) -> None:
    with store.write() as tx:
        INSERT.insert(tx, row("a"), row("b"))
        assert CHANGE.change(tx, {"of_id": "a", "actor": "bob"}) == 1
        INSERT.insert(tx, row("c"))
        assert [found.id for found in ALL.rows(tx, {"most": 9})] == ["a", "b", "c"]
        INSERT.insert(tx, row("d"))
        assert tx.connection.execute(select(table.c.id).where(table.c.id == "d")).scalar() == "d"
        INSERT.insert(tx, row("e"))
    with store.read() as tx:
        assert [found.id for found in ALL.rows(tx, {"most": 9})] == ["a", "b", "c", "d", "e"]
        assert GET.first(tx, {"of_id": "a"}).actor == "bob"


def test_inserts_that_wait_are_discarded_with_their_transaction(store: Store) -> None:
    def fails(tx: Tx) -> None:
        INSERT.insert(tx, row("a"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.transact(fails)
    with pytest.raises(IntegrityError), store.write() as tx:
        INSERT.insert(tx, row("b"), row("b"))
    with store.read() as tx:
        assert ALL.rows(tx, {"most": 9}) == []


def test_more_inserts_than_one_statement_takes_wait_in_parts(store: Store) -> None:
    with store.write() as tx:
        for number in range(2_000):
            INSERT.insert(tx, row(f"{number:05}"))
    with store.write() as tx:
        INSERT.insert(tx, *(row(f"{number:05}") for number in range(2_000, 9_000)))
    with store.read() as tx:
        assert len(ALL.rows(tx, {"most": 10_000})) == 9_000
