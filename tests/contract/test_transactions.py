"""What a transaction promises: all or nothing, on disk when it says so, a still picture when it reads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import eventually
from processes import at_once, start_python
from sqlalchemy import Connection, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.store import engine, idempotency, releases, requests
from kneo.store.engine import Store, Tx, insert_ignoring_duplicates, lock_table, open_engine, upsert
from kneo.store.idempotency import KeyedRequest, KeyOf
from kneo.store.migrate import open_store
from kneo.store.tables import leases, trust_roots

DIGEST = "sha256:" + "0" * 64

HOLD = """
import sys
from kneo.clock import SystemClock
from kneo.store.engine import Store, Tx, open_engine
store = Store(open_engine(sys.argv[1]), SystemClock())
with store.exclusive(sys.argv[2]) as held:
    print(bool(held), flush=True)
    sys.stdin.read()
"""


def count_roots(store: Store) -> int:
    with store.read() as tx:
        return tx.connection.execute(select(func.count()).select_from(trust_roots)).scalar_one()


def test_a_block_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write() as tx:  # noqa: PT012 - the block is what is tested
        releases.insert_trust_root(tx, 1, DIGEST, b"{}")
        raise RuntimeError
    assert count_roots(store) == 0


def test_a_transaction_has_one_time(store: Store, clock: ManualClock) -> None:
    with store.write() as tx:
        assert tx.now == clock.now()
        assert tx.at == "2026-01-31T12:00:00.000000+00:00"


def test_a_reader_sees_one_still_picture(store: Store) -> None:
    count = select(func.count()).select_from(trust_roots)
    with store.read() as tx:
        seen = tx.connection.execute(count).scalar_one()
        with store.write() as other:
            releases.insert_trust_root(other, 1, DIGEST, b"{}")
        assert tx.connection.execute(count).scalar_one() == seen == 0
    assert count_roots(store) == 1


def test_a_snapshot_is_read_once_and_a_transaction_that_writes_reads_what_it_wrote(store: Store) -> None:
    with store.write() as tx:
        assert releases.trust_chain(tx) == ()
        releases.insert_trust_root(tx, 1, DIGEST, b"{}")
        assert len(releases.trust_chain(tx)) == 1
    with store.read() as tx:
        assert releases._trust_rows(tx) is releases._trust_rows(tx)
        assert tx.once("none", lambda: None) is tx.once("none", lambda: pytest.fail("read again")) is None
    with store.read() as tx:
        assert len(releases.trust_chain(tx)) == 1


def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    with store.write() as tx:
        releases.insert_trust_root(tx, 1, DIGEST, b"{}")
        assert count_roots(store) == 0


def test_writers_that_read_first_do_not_lose_updates(store: Store) -> None:
    with store.write() as tx:
        upsert(tx, leases, {"name": "counter"}, fence=0, until=tx.at)

    def increment(_: int) -> None:
        with store.write() as tx:
            lock_table(tx, "counter")
            before = tx.connection.execute(select(leases.c.fence)).scalar_one()
            upsert(tx, leases, {"name": "counter"}, fence=before + 1, until=tx.at)

    at_once(12, increment)
    with store.read() as tx:
        assert tx.connection.execute(select(leases.c.fence)).scalar_one() == 12


def test_more_threads_than_connections_wait_their_turn(store: Store) -> None:
    def ask(number: int) -> str:
        with store.write() as tx:
            return requests.insert_request(tx, "reconcile", {"n": number}, "ann")

    assert len(set(at_once(40, ask))) == 40


def test_a_pool_with_no_free_connection_says_try_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.is_sqlite:
        pytest.skip("any number may read a file")
    monkeypatch.setattr(store.engine.pool, "_timeout", 0.01)
    with contextlib.ExitStack() as stack:
        with pytest.raises(Transient) as refused:  # noqa: PT012 - which of them fails is the pool's choice
            for _ in range(100):
                stack.enter_context(store.read())
        assert refused.value.code == "store_unavailable"


def test_insert_ignoring_duplicates_says_whether_it_did(store: Store) -> None:
    row = {"version": 1, "digest": DIGEST, "envelope": b"first", "accepted_at": "now"}
    with store.write() as tx:
        assert insert_ignoring_duplicates(tx, trust_roots, **row)
        assert not insert_ignoring_duplicates(tx, trust_roots, **row | {"envelope": b"second"})
        assert releases.trust_chain(tx) == ((1, DIGEST, b"first"),)


def test_an_error_does_not_show_what_was_written(store: Store) -> None:
    row = {"version": 1, "digest": "private", "envelope": b"private", "accepted_at": "now"}
    with pytest.raises(IntegrityError) as failed, store.write() as tx:  # noqa: PT012 - the second one fails
        tx.connection.execute(insert(trust_roots).values(**row))
        tx.connection.execute(insert(trust_roots).values(**row))
    assert "private" not in str(failed.value)


@pytest.mark.parametrize("text", ["half a character \ud800", "a NUL \0", "n" * 300])
def test_a_value_that_cannot_be_stored_is_wrong_input_not_a_crash(store: Store, text: str) -> None:
    """Both databases refuse the same; neither may answer with a traceback or the value."""
    with pytest.raises(Invalid, match="cannot be stored") as refused, store.write() as tx:
        requests.insert_request(tx, "reconcile", {}, text)
    assert refused.value.code == "unstorable_value"
    assert text not in str(refused.value)
    with store.write() as tx:
        requests.insert_request(tx, "reconcile", {}, "ann")


@pytest.mark.parametrize("work", ["text", "prepared", "many", "looked for"])
def test_a_nul_is_refused_alike_by_both_databases(store: Store, work: str) -> None:
    key = KeyOf(principal="a\0b", scope="s", key="k")
    row = {"name": "a\0b", "fence": 1, "owner": "me", "until": "x"}
    before = written(store)
    with pytest.raises(Invalid, match="NUL character") as refused, store.write() as tx:  # noqa: PT012 - one of these
        if work == "text":
            tx.connection.execute(insert(leases).values(**row))
        elif work == "prepared":
            idempotency.keep(tx, KeyedRequest(key=key, request_digest=DIGEST, attempt="1"), 200, {})
        elif work == "many":
            tx.connection.execute(insert(leases), [{**row, "name": "fine"}, row])
        else:
            tx.connection.execute(select(leases).where(leases.c.name == "a\0b"))
    assert refused.value.code == "unstorable_value"
    assert written(store) == before


@pytest.mark.parametrize("work", ["insert", "update", "prepared", "many"])
def test_a_text_that_is_longer_than_its_column_is_refused_alike_by_both_databases(store: Store, work: str) -> None:
    row = {"name": "n" * 201, "fence": 1, "owner": "me", "until": "x"}
    key = KeyOf(principal="n" * 201, scope="s", key="k")
    before = written(store)
    with pytest.raises(Invalid, match="201 characters, and the column has 200") as refused, store.write() as tx:  # noqa: PT012
        if work == "insert":
            tx.connection.execute(insert(leases).values(**row))
        elif work == "update":
            tx.connection.execute(update(leases).values(name=row["name"]))
        elif work == "prepared":
            idempotency.keep(tx, KeyedRequest(key=key, request_digest=DIGEST, attempt="1"), 200, {})
        else:
            tx.connection.execute(insert(leases), [{**row, "name": "fine"}, row])
    assert (refused.value.code, refused.value.details["limit"]) == ("unstorable_value", 200)
    assert written(store) == before
    with store.write() as tx:
        tx.connection.execute(insert(leases).values(**{**row, "name": "ü" * 200}))


def test_a_text_of_any_length_may_be_looked_for(store: Store) -> None:
    key = KeyOf(principal="n" * 201, scope="s", key="k")
    with store.read() as tx:
        assert tx.connection.execute(select(leases).where(leases.c.name == "n" * 201)).first() is None
        assert tx.connection.execute(select(leases).where(leases.c.name.in_(["n" * 201]))).first() is None
        assert idempotency.look(tx, KeyedRequest(key=key, request_digest=DIGEST, attempt="1")) is None


def written(store: Store) -> int:
    with store.read() as tx:
        return tx.connection.execute(select(func.count()).select_from(leases)).scalar_one()


def test_a_nul_in_json_is_a_value_like_any_other(store: Store) -> None:
    with store.write() as tx:
        made = requests.insert_request(tx, "reconcile", {"text": "a\0b"}, "ann")
    with store.read() as tx:
        found = requests.get(tx, made)
    assert found is not None
    assert found.payload == {"text": "a\0b"}


# ---- SQLite ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_store(sqlite_url: str, clock: ManualClock) -> Iterator[Store]:
    opened = Store(open_engine(sqlite_url), clock)
    yield opened
    opened.close()


def pragmas(connection: Connection) -> dict[str, object]:
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}


def test_every_pooled_sqlite_connection_is_durable(sqlite_store: Store) -> None:
    full = 2
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(sqlite_store.engine.connect()) for _ in range(8)]
        assert len({id(connection.connection.dbapi_connection) for connection in connections}) == 8
        for connection in connections:
            assert pragmas(connection) == {
                "journal_mode": "wal",
                "synchronous": full,
                "foreign_keys": 1,
                "busy_timeout": engine.BUSY_TIMEOUT_MS,
            }


def test_a_sqlite_writer_that_waits_too_long_says_try_again(
    sqlite_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 20)
    store, other = Store(open_engine(sqlite_url), clock), Store(open_engine(sqlite_url), clock)
    with store.write() as tx:
        tx.connection.execute(text("CREATE TABLE t (x)"))
        with pytest.raises(Transient) as refused, other.write():
            pass
        assert "locked" in refused.value.message
        with pytest.raises(Transient, match="other writers of this process"), store.write():
            pass
    store.close()
    other.close()


def test_what_reads_a_file_cannot_write_to_it(sqlite_store: Store) -> None:
    with pytest.raises(Transient, match="readonly"), sqlite_store.read() as tx:
        tx.connection.execute(text("CREATE TABLE t (x)"))
    with sqlite_store.write() as tx:
        tx.connection.execute(text("CREATE TABLE t (x)"))


def test_a_transaction_that_failed_leaves_nothing_for_the_next_one(sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        tx.connection.execute(text("CREATE TABLE t (x)"))
    with pytest.raises(ZeroDivisionError), sqlite_store.write() as tx:  # noqa: PT012 - the second one fails
        tx.connection.execute(text("INSERT INTO t VALUES (1)"))
        raise ZeroDivisionError
    with sqlite_store.write() as tx:
        tx.connection.execute(text("INSERT INTO t VALUES (2)"))
    with sqlite_store.read() as tx:
        assert tx.connection.execute(text("SELECT x FROM t")).scalars().all() == [2]


# ---- locks that live as long as their process --------------------------------------------------------------------


def test_only_one_process_is_exclusive_and_a_killed_one_frees_the_lock(store: Store, migrated_url: str) -> None:
    holder = start_python(HOLD, migrated_url, "steps")
    try:
        assert holder.stdout.readline().strip() == "True"
        with store.exclusive("steps") as held:
            assert not held
        with store.exclusive("timers") as other:
            assert other
        holder.kill()
        holder.wait(240)
        # A server notices a dead client in a moment, not at once.
        eventually(lambda: is_free(store, "steps"))
    finally:
        holder.kill()
        holder.communicate()


def is_free(store: Store, name: str) -> bool:
    with store.exclusive(name) as held:
        return bool(held)


def test_a_lock_is_not_the_same_threads_to_take_twice(store: Store) -> None:
    with store.exclusive("steps") as first, store.exclusive("steps") as second:
        assert (bool(first), bool(second)) == (True, False)
    with store.exclusive("steps") as again:
        assert again


def test_a_sqlite_lock_stands_beside_the_database(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.exclusive("steps") as held:
        assert held
        assert (tmp_path / "kneo.sqlite.steps.lock").exists()


def test_a_process_that_stops_half_way_does_not_hold_its_locks_for_ever(postgres_url: str, clock: ManualClock) -> None:
    other, stopped = open_store(postgres_url, clock), Store(open_engine(postgres_url), clock)
    rows = [{"name": f"lease-{number}", "fence": 1, "owner": "me", "until": "x"} for number in range(3)]
    with pytest.raises(Transient) as caught, stopped.write() as tx:  # noqa: PT012 - what follows the wait is what fails
        tx.connection.execute(insert(leases), rows)
        # From here on the process does nothing, however slow the machine was before.
        tx.connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 50")
        # The same rows are taken by another process as soon as the server has given up on the first.
        with other.write() as late:
            late.connection.execute(insert(leases), rows)
        tx.connection.execute(select(leases))
    assert caught.value.code == "store_unavailable"
    with other.read() as tx:
        assert len(tx.connection.execute(select(leases)).all()) == 3
    for store in (stopped, other):
        store.close()


def test_what_need_not_be_durable_is_written_without_waiting_for_the_disk(sqlite_store: Store) -> None:
    full, normal = 2, 1
    for durable, level in ((True, full), (False, normal), (False, normal), (True, full)):
        with sqlite_store.write(durable=durable) as tx:
            assert tx.connection.exec_driver_sql("PRAGMA synchronous").scalar() == level


def test_a_group_is_as_durable_as_its_most_durable_part(sqlite_store: Store) -> None:
    def level(tx: Tx) -> object:
        return tx.connection.exec_driver_sql("PRAGMA synchronous").scalar()

    with sqlite_store.write():
        # All of them wait for this one to end, and so come together.
        asked = [sqlite_store.submit(level, durable=durable) for durable in (False, True, False)]
    levels = [one.result() for one in asked]
    # The first may have been taken up alone before the others came.
    assert levels[1:] == [2, 2]
    assert levels[0] in {1, 2}


def test_any_number_may_read_at_once(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("a server has a limit of its own, and a pool within it")
    many = 40
    meeting = threading.Barrier(many)

    def read(_: int) -> int:
        with store.read() as tx:
            meeting.wait(240)
            return tx.connection.execute(select(func.count()).select_from(leases)).scalar_one()

    assert at_once(many, read) == [0] * many
