"""Connections with a transaction on them: to a SQLite file, which this process keeps open, or to a PostgreSQL server."""

from __future__ import annotations

import contextlib
import select
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from kneo.clock import monotonic
from kneo.errors import Invalid, Transient

if TYPE_CHECKING:
    from _typeshed import HasFileno

WRITE = "kneo_write"
"""Execution option that marks a connection as one that writes."""

PING_SECONDS = 10.0
"""Idle time after which a connection to a server is checked by a statement, which a lost network does not answer."""

IDLE_READERS = 16
"""Idle read connections to a file that stay open; further ones are closed after use."""


class Connections(Protocol):
    """Runs a block as a transaction: committed at its end, rolled back when it raises."""

    def write(self, *, durable: bool = True) -> contextlib.AbstractContextManager[Connection]:
        """Begin a write transaction; one that need not be durable may reach the disk with a later durable one."""
        ...

    def read(self) -> contextlib.AbstractContextManager[Connection]:
        """Begin a read transaction on a consistent snapshot, which never blocks a writer."""
        ...

    def look(self) -> contextlib.AbstractContextManager[Connection]:
        """Lend a connection without a transaction; two statements may see different states."""
        ...

    def close(self) -> None:
        """Close idle connections."""


class ServerConnection(DBAPIConnection, Protocol):
    """A connection of the driver to a server."""

    def fileno(self) -> int: ...


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

    @contextlib.contextmanager
    def look(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            # A statement is one round trip, a transaction around it two more.
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Do nothing: the pool owns the connections."""


def check_idle_connections(engine: Engine) -> None:
    """Check connections when the pool lends them, as ``pool_pre_ping`` does; a recently used one without a statement.

    A server that ended or ended the session has sent something: the socket of an idle connection is readable then.
    """

    def returned(_connection: object, entry: ConnectionPoolEntry) -> None:
        entry.info["idle_since"] = monotonic()

    def lent(connection: ServerConnection, entry: ConnectionPoolEntry, _fairy: object) -> None:
        since = entry.info.get("idle_since")
        if since is None:
            return
        try:
            if monotonic() - since >= PING_SECONDS or is_readable(connection):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # The pool opens another connection, and drops those that are as old.
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", returned)
    event.listen(engine, "checkout", lent)


def check_sessions(engine: Engine) -> None:
    """Check that each connection has a session of the server to itself, as locks and notifications need it.

    A proxy that pools transactions gives an idle session to the next transaction, also to that of another connection.

    Raises:
        Invalid: ``transaction_pooling``: it does not.
    """
    session = "SELECT pg_backend_pid()"
    with engine.connect() as first, engine.connect() as second:
        idle = first.execution_options(isolation_level="AUTOCOMMIT")
        before = idle.exec_driver_sql(session).scalar_one()
        with second.begin():
            other = second.exec_driver_sql(session).scalar_one()
            after = idle.exec_driver_sql(session).scalar_one()
    if other == before or after != before:
        msg = "KNEO_SERV_DATABASE_URL leads to a proxy that pools transactions: each may get another session of PostgreSQL."
        hint = "Connect to PostgreSQL directly, or let the proxy pool sessions (PgBouncer: pool_mode = session)."
        raise Invalid(msg, code="transaction_pooling", hint=hint)


def is_readable(connection: HasFileno) -> bool:
    """Return whether the server of an idle connection has sent something, such as the end of the session."""
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


class FileConnections:
    """Connections to a SQLite file: one that writes, a thread at a time, and those that read.

    They stay open, and the driver begins and ends their transactions: the work of a pool and of SQLAlchemy around a transaction
    takes several times as long as the transaction.

    Args:
        engine: The file, with a driver that begins no transactions of its own.
        patience: Seconds that a thread waits for other writers of this process.
    """

    def __init__(self, engine: Engine, patience: float) -> None:
        self._engine = engine
        self._patience = patience
        self._write_lock = threading.Lock()
        self._writer: _OpenConnection | None = None
        self._durable = True
        self._readers: list[_OpenConnection] = []

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        # Threads of one process take turns here: SQLite makes waiters sleep ever longer, in no order.
        if not self._write_lock.acquire(timeout=self._patience):
            msg = "The database did not answer: other writers of this process take too long."
            raise Transient(msg, code="store_unavailable")
        try:
            opened, self._writer = self._writer, None
            if opened is None:
                opened, self._durable = self._open(**{WRITE: True}), True
            try:
                if durable is not self._durable:
                    opened.run(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                # The write lock comes first: a transaction that begins by reading cannot be upgraded.
                opened.run("BEGIN IMMEDIATE")
                yield opened.connection
                self._engine.dispatch.commit(opened.connection)
                opened.run("COMMIT")
            finally:
                self._writer = opened if opened.rollback() else None
        finally:
            self._write_lock.release()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        opened = self._idle_reader() or self._new_reader()
        try:
            opened.run("BEGIN")
            yield opened.connection
        finally:
            if opened.rollback():
                self._readers.append(opened)
                if len(self._readers) > IDLE_READERS and (idle := self._idle_reader()):
                    idle.drop()

    def look(self) -> contextlib.AbstractContextManager[Connection]:
        return self.read()

    def close(self) -> None:
        with self._write_lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.drop()
        while reader := self._idle_reader():
            reader.drop()

    def _idle_reader(self) -> _OpenConnection | None:
        try:
            return self._readers.pop()
        except IndexError:
            return None

    def _new_reader(self) -> _OpenConnection:
        opened = self._open()
        opened.run("PRAGMA query_only=ON")
        return opened

    def _open(self, **options: bool) -> _OpenConnection:
        connection = self._engine.connect().execution_options(**options)
        # For SQLAlchemy it is one long transaction; otherwise it would begin and end its own.
        connection.begin()
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return _OpenConnection(connection, driver)


@dataclass(frozen=True)
class _OpenConnection:
    """An open connection, and the driver's connection, which begins and ends its transactions."""

    connection: Connection
    driver: sqlite3.Connection

    def run(self, statement: str) -> None:
        try:
            self.driver.execute(statement)
        except Exception as error:
            raise translate_error(self.connection, error, statement) from error

    def rollback(self) -> bool:
        """Roll back an open transaction; return whether the connection can be used again."""
        try:
            if self.driver.in_transaction:
                self.driver.rollback()
        except Exception:  # noqa: BLE001 - another connection is opened
            self.drop()
            return False
        return not self.connection.invalidated

    def drop(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.close()


def translate_error(connection: Connection, error: Exception, statement: str) -> Exception:
    """Return an error of the driver as SQLAlchemy's; return any other error unchanged."""
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
