"""Connections with a transaction on them: to a SQLite file, which this process keeps open, or to a PostgreSQL server."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from kneo.errors import Transient

WRITE = "kneo_write"
"""Execution option that marks a connection as one that writes."""

IDLE_READERS = 16
"""Connections to a file that stay open while nobody reads; further ones are closed after use."""


class Connections(Protocol):
    """Begins transactions and ends them: with all that they did, or with nothing when the block raises."""

    def write(self, *, durable: bool = True) -> contextlib.AbstractContextManager[Connection]:
        """Begin a transaction that writes; what need not be durable may reach the disk with a later one that is."""
        ...

    def read(self) -> contextlib.AbstractContextManager[Connection]:
        """Begin one consistent snapshot, which never blocks a writer and cannot write."""
        ...

    def close(self) -> None:
        """Close those that nobody uses."""


class ServerConnections:
    """Connections from SQLAlchemy's pool."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:  # noqa: ARG002 - always is
        with self._engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            # The default would show each statement what was committed before it.
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Nothing: the pool has them."""


class FileConnections:
    """Connections to a SQLite file: one that writes, a thread at a time, and those that read.

    They stay open, and the driver begins and ends their transactions: what a pool and SQLAlchemy do around each one
    takes several times as long as the transaction.

    Args:
        engine: The file, with a driver that begins no transactions of its own.
        patience: Seconds that a thread waits for those of this process that write before it.
    """

    def __init__(self, engine: Engine, patience: float) -> None:
        self._engine = engine
        self._patience = patience
        self._turn = threading.Lock()
        self._writer: _Kept | None = None
        self._durable = True
        self._readers: list[_Kept] = []

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        # Threads of one process take turns here: SQLite lets them wait by sleeping ever longer, and not in turn.
        if not self._turn.acquire(timeout=self._patience):
            msg = "The database did not answer: other writers of this process take too long."
            raise Transient(msg, code="store_unavailable")
        try:
            kept, self._writer = self._writer, None
            if kept is None:
                kept, self._durable = self._open(**{WRITE: True}), True
            try:
                if durable is not self._durable:
                    kept.run(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                # The right to write comes first: a transaction that begins by reading cannot get it later.
                kept.run("BEGIN IMMEDIATE")
                yield kept.connection
                self._engine.dispatch.commit(kept.connection)
                kept.run("COMMIT")
            finally:
                self._writer = kept if kept.settle() else None
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        kept = self._idle_reader() or self._new_reader()
        try:
            kept.run("BEGIN")
            yield kept.connection
        finally:
            if kept.settle():
                self._readers.append(kept)
                if len(self._readers) > IDLE_READERS and (one := self._idle_reader()):
                    one.drop()

    def close(self) -> None:
        with self._turn:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.drop()
        while one := self._idle_reader():
            one.drop()

    def _idle_reader(self) -> _Kept | None:
        try:
            return self._readers.pop()
        except IndexError:
            return None

    def _new_reader(self) -> _Kept:
        kept = self._open()
        kept.run("PRAGMA query_only=ON")
        return kept

    def _open(self, **options: bool) -> _Kept:
        connection = self._engine.connect().execution_options(**options)
        # To SQLAlchemy it is one long transaction; else it would begin and end some of its own.
        connection.begin()
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return _Kept(connection, driver)


@dataclass(frozen=True)
class _Kept:
    """A connection that stays open, and the driver's own, which begins and ends its transactions."""

    connection: Connection
    driver: sqlite3.Connection

    def run(self, statement: str) -> None:
        try:
            self.driver.execute(statement)
        except Exception as error:
            raise spelled(self.connection, error, statement) from error

    def settle(self) -> bool:
        """Undo what is left of a transaction; false where the connection is of no further use."""
        try:
            if self.driver.in_transaction:
                self.driver.rollback()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, another one will be opened
            self.drop()
            return False
        return not self.connection.invalidated

    def drop(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.close()


def spelled(connection: Connection, error: Exception, statement: str) -> Exception:
    """Spell an error of the driver as SQLAlchemy does; any other one stays what it is."""
    dialect = connection.dialect
    base = dialect.loaded_dbapi.Error
    if not isinstance(error, base):
        return error
    lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        statement, None, error, base, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )
