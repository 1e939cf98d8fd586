"""Idle connections of the pool: used again without a statement, and replaced where the server has ended the session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from databases import Server
from sqlalchemy import event, text

from kneo.clock import SystemClock
from kneo.store import connections
from kneo.store.engine import CONNECTIONS, Store
from kneo.store.migrate import open_store


@pytest.fixture
def store(postgres_server: Server) -> Iterator[Store]:
    name = postgres_server.create()
    opened = open_store(postgres_server.url(name), SystemClock())
    yield opened
    opened.close()
    postgres_server.drop(name)


@pytest.fixture
def pings(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the connections that were checked by a statement."""
    checked: list[object] = []
    ping = store.engine.dialect.do_ping

    def noted(connection: object) -> bool:
        checked.append(connection)
        return ping(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(store.engine.dialect, "do_ping", noted)
    return checked


def backend(store: Store) -> int:
    with store.read() as tx:
        return int(tx.connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def end_session(server: Server, store: Store, pid: int) -> None:
    """End a session of the server, and wait until its process has gone."""
    other = open_store(server.url(str(store.engine.url.database)), SystemClock())
    try:
        with other.engine.connect() as connection:
            ended = connection.execute(text("SELECT pg_terminate_backend(:pid, 120000)"), {"pid": pid})
            assert ended.scalar_one()
    finally:
        other.close()


def test_a_recently_used_connection_is_used_again_without_a_statement(
    store: Store, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PING_SECONDS", 3600.0)
    assert backend(store) == backend(store)
    assert pings == []


def test_a_connection_that_was_idle_for_long_is_checked(
    store: Store, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PING_SECONDS", 0.0)
    pid = backend(store)
    pings.clear()
    assert backend(store) == pid
    assert len(pings) == 1


def test_an_ended_session_is_replaced_before_it_is_used(
    store: Store, postgres_server: Server, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PING_SECONDS", 3600.0)
    pid = backend(store)
    end_session(postgres_server, store, pid)
    assert backend(store) != pid
    assert len(pings) == 1


def test_connections_stay_open_for_as_many_threads_as_use_them(store: Store) -> None:
    opened: list[object] = []
    event.listen(store.engine, "connect", lambda connection, _entry: opened.append(connection))
    for _ in range(2):
        with contextlib.ExitStack() as reading:
            for _ in range(CONNECTIONS):
                reading.enter_context(store.read())
    assert len(opened) <= CONNECTIONS
