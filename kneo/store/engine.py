"""Engines and transactions of a database: SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import json
import os
import platform
import re
import sqlite3
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Dialect, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from kneo.clock import Clock, isoformat, monotonic, sleep
from kneo.distribution import install_extra
from kneo.errors import Invalid, Transient
from kneo.store.connections import (
    Connections,
    FileConnections,
    ServerConnections,
    check_idle_connections,
    check_sessions,
)
from kneo.store.deltas import DeltaHub
from kneo.store.locks import Kind, Lock, SessionLock, file_lock
from kneo.store.prepared import Insertion, Parameters, Prepared, execute_inserts
from kneo.store.writer import CommitNotifier, Writer
from kneo.trust.record_mac import RecordMacs, no_macs
from kneo.trust.sealing import NO_KEYS, DataKeys

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

    from kneo.trust.keys import PrivateKey


T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
"""The longest time that a SQLite writer waits for another one."""

STOPPED_SECONDS = 60
"""The longest time that PostgreSQL keeps a transaction of a stopped process, whose locks block others, before rolling it back."""

_POSTGRES_OPTIONS = f"-c idle_in_transaction_session_timeout={STOPPED_SECONDS}s"

_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
"""Options of libpq that detect a dead server within half a minute."""


def encode_json(value: object) -> bytes:
    """Encode a JSON value. Records are objects, tuples are lists.

    Raises:
        TypeError: a value in it has no JSON form.
    """
    try:
        return to_json(value)
    except ValueError:
        # Half a character: Python writes an escape, which every database stores.
        return json.dumps(value, default=_fields).encode()


def _fields(record: object) -> dict[str, object]:
    if not is_dataclass(record) or isinstance(record, type):
        msg = f"{type(record).__name__} has no JSON form"
        raise TypeError(msg)
    return asdict(record)


def encode_json_text(value: object) -> str:
    """Encode a JSON value as text."""
    return encode_json(value).decode()


def decode_json(text: str | bytes) -> object:
    """Decode a stored JSON value."""
    try:
        value: object = from_json(text)
    except ValueError:
        value = json.loads(text)
    return value


_JSON = {"json_serializer": encode_json_text, "json_deserializer": decode_json}

CONNECTIONS = 15
"""The most connections of a process to PostgreSQL. They stay open: opening one costs more than a run, and its statements are parsed
again.
"""

_POOL: Final = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_use_lifo": True}

APPLICATION = "kneo "
"""The beginning of the name that each process gives its connections; its machine and its id follow."""

TOO_MANY_CONNECTIONS = "too_many_connections"
"""The code of the error that the server accepts no more connections."""

WRITERS = 8
"""The most concurrent transactions of ``submit`` on PostgreSQL."""

WORKER_LOCK = "worker"
"""The lock of the process that executes steps on a SQLite file, shared by such processes on PostgreSQL."""

FindKey: TypeAlias = "Callable[[], PrivateKey | None]"
"""Finds the key of this installation; ``None`` where it has none."""


def no_key() -> PrivateKey | None:
    """Return no key, so that nothing is signed."""
    return None


@dataclass(frozen=True)
class Tx:
    """An open transaction, its time, the key for receipts, the keys that seal bodies, and the MACs of records."""

    opened: Connection
    now: datetime
    find_key: FindKey = no_key
    data_keys: DataKeys = NO_KEYS
    macs: RecordMacs = field(default_factory=no_macs)
    notifications: list[tuple[str, object]] = field(default_factory=list)
    snapshot: dict[Hashable, object] | None = None
    """What was read once of a consistent snapshot; ``None`` in a transaction that writes."""
    locked: set[str] = field(default_factory=set)
    """The ids of rows that this transaction has locked or changed, so that they need no lock."""
    reach: frozenset[str] | None = None
    """The environments whose rows this transaction reads; ``None`` for all rows, also those without an environment."""
    inserts: list[tuple[Insertion, list[Any]]] = field(default_factory=list)
    """The inserts that wait; see ``Prepared.insert``."""
    calls: dict[Hashable, tuple[Insertion, list[Any]]] = field(default_factory=dict)
    """The calls of a function that wait for the end of the transaction, once for each key."""

    def sees(self, environment: str | None) -> bool:
        """Return whether this transaction reads the rows of an environment."""
        return self.reach is None or environment in self.reach

    @property
    def unlimited(self) -> Tx:
        """The same transaction, which reads all rows."""
        return replace(self, reach=None)

    @property
    def remembering(self) -> Tx:
        """The same transaction, which reads what ``once`` names once: for work that changes nothing of it."""
        return replace(self, snapshot={}) if self.snapshot is None else self

    @property
    def connection(self) -> Connection:
        """The connection, on which the inserts that wait have been executed."""
        if self.inserts:
            execute_inserts(self)
        return self.opened

    def finish(self) -> None:
        """Execute what waits for the end of the transaction."""
        if self.inserts or self.calls:
            execute_inserts(self, tuple(self.calls.values()))

    def once(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return what a function reads; a snapshot is read once for each key, of the environments that are read."""
        if self.snapshot is None:
            return read()
        key = self.reach, key
        if key not in self.snapshot:
            self.snapshot[key] = read()
        return cast("T", self.snapshot[key])

    def notify(self, topic: str, change: object = None) -> None:
        """Notify the listeners of a topic after the commit."""
        self.notifications.append((topic, change))

    @cached_property
    def dialect(self) -> Dialect:
        return self.opened.dialect

    @cached_property
    def driver(self) -> DBAPIConnection:
        """The driver's own connection."""
        driver = self.opened.connection.dbapi_connection
        assert driver is not None
        return driver

    @cached_property
    def at(self) -> str:
        """The transaction's time as it is stored."""
        return isoformat(self.now)


class Store:
    """A database: its transactions and process locks.

    Args:
        engine: The database.
        clock: The source of the time.
        find_key: Finds the service key when a receipt is signed or a record is authenticated.
        data_keys: Seal the bodies of journals.
        checks_macs: Whether records without a valid MAC are refused.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        find_key: FindKey = no_key,
        data_keys: DataKeys = NO_KEYS,
        *,
        checks_macs: bool = True,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.find_key = cache(find_key)
        self.macs = RecordMacs(self.find_key, checks=checks_macs)
        self._data_keys = data_keys
        self._connections: Connections = (
            FileConnections(engine, BUSY_TIMEOUT_MS / 1000) if self.is_sqlite else ServerConnections(engine)
        )
        self._writer = Writer(lambda durable: self.write(durable=durable), self._part)
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="writer")
        self.notifier = CommitNotifier()
        self.deltas = DeltaHub(None if self.is_sqlite else lambda: self.conninfo)
        self._is_closed = False
        self.find_reach: Callable[[Tx], frozenset[str] | None] | None = None
        if not self.is_sqlite:
            event.listen(self.engine, "checkin", self._close_returned)

    def limited(self, find_reach: Callable[[Tx], frozenset[str] | None]) -> Store:
        """Return this database as a caller reads it: each transaction finds at its start which environments it reads."""
        view = copy.copy(self)
        view.find_reach = find_reach
        return view

    def _limit(self, tx: Tx) -> Tx:
        if self.find_reach is None:
            return tx
        reach = self.find_reach(tx)
        return tx if reach is None else replace(tx, reach=reach)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @property
    def conninfo(self) -> str:
        """The URL for libpq, with the password."""
        return self.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Tx]:
        """Run a block as one transaction that takes the write lock at its start.

        A transaction that need not be durable survives the end of this process at once, and a power failure once a durable
        one was committed after it.

        Raises:
            Transient: the database stayed busy or unreachable.
        """
        with _translate(), self._connections.write(durable=durable) as connection:
            tx = self._limit(Tx(connection, self.clock.now(), self.find_key, self._data_keys, self.macs))
            yield tx
            tx.finish()
        self.notifier.notify(tx.notifications)

    def submit(self, work: Callable[[Tx], T], *, durable: bool = True) -> Future[T]:
        """Run a piece of work as a transaction in another thread; the future resolves once it is on disk.

        On SQLite concurrent pieces share a write to the disk. The work must not open transactions itself.
        """
        work = _in_this_context(work)
        if self.is_sqlite:
            return self._writer.submit(self._limiting(work), durable=durable)
        return self._pool.submit(self._transact, work)

    def _limiting(self, work: Callable[[Tx], T]) -> Callable[[Tx], T]:
        """Return work in a transaction of the writer, which is shared, for the caller of this database."""
        return work if self.find_reach is None else lambda tx: work(self._limit(tx))

    def transact(self, work: Callable[[Tx], T], *, durable: bool = True) -> T:
        """Run a piece of work as a transaction, alone or in a group; see ``submit``.

        Raises:
            Transient: the database stayed busy or unreachable.
        """
        if not self.is_sqlite:
            return self._transact(work)
        return self._writer.do(self._limiting(_in_this_context(work)), durable=durable)

    def _transact(self, work: Callable[[Tx], T]) -> T:
        with self.write() as tx:
            return work(tx)

    def execute(self, work: Callable[[Tx], T]) -> T:
        """Run a piece of work whose statements need not be one transaction. On PostgreSQL each then costs one round trip.

        Raises:
            Transient: the database stayed busy or unreachable.
        """
        if self.is_sqlite:
            return self.transact(work)
        with _translate(), self._connections.look() as connection:
            tx = self._limit(Tx(connection, self.clock.now(), self.find_key, self._data_keys, self.macs))
            result = work(tx)
            tx.finish()
        self.notifier.notify(tx.notifications)
        return result

    @contextlib.contextmanager
    def _part(self, tx: Tx) -> Iterator[Tx]:
        # As plain SQL: SQLAlchemy gives each savepoint another name, and compiles three statements for it.
        with _translate():
            tx.connection.exec_driver_sql("SAVEPOINT part")
            part = Tx(tx.connection, self.clock.now(), self.find_key, self._data_keys, self.macs)
            try:
                yield part
                part.finish()
                tx.notifications.extend(part.notifications)
            except BaseException:
                tx.connection.exec_driver_sql("ROLLBACK TO part")
                raise
            finally:
                tx.connection.exec_driver_sql("RELEASE part")

    @contextlib.contextmanager
    def read(self) -> Iterator[Tx]:
        """Run a block on a consistent snapshot that never blocks a writer.

        Raises:
            Transient: the database stayed busy or unreachable.
        """
        with _translate(), self._connections.read() as connection:
            yield self._limit(Tx(connection, self.clock.now(), self.find_key, self._data_keys, self.macs, snapshot={}))

    @contextlib.contextmanager
    def look(self) -> Iterator[Tx]:
        """Run a block with a single statement that reads. On PostgreSQL it costs one round trip, ``read`` costs two more.

        Raises:
            Transient: the database stayed busy or unreachable.
        """
        with _translate(), self._connections.look() as connection:
            yield self._limit(Tx(connection, self.clock.now(), self.find_key, self._data_keys, self.macs, snapshot={}))

    def check_sessions(self) -> None:
        """Check that each connection to a server has a session to itself.

        Raises:
            Invalid: ``transaction_pooling``: it does not.
            Transient: the database cannot be reached.
        """
        if not self.is_sqlite:
            with _translate():
                check_sessions(self.engine)

    def exclusive(self, name: str) -> contextlib.AbstractContextManager[Lock]:
        """Try to acquire a lock exclusively; it is true where that succeeded.

        SQLite has a lock on a file next to the database, PostgreSQL a session advisory lock, so that the end of a process releases
        it. A restart of the server loses it: a holder checks ``held``.
        """
        return self._file_lock(name) if self.is_sqlite else self._session_lock(name, "")

    def shared(self, name: str, fact: str = "") -> contextlib.AbstractContextManager[Lock]:
        """Try to acquire a lock together with other holders; it is true where that succeeded. On SQLite it is exclusive.

        Args:
            name: The name of the lock.
            fact: A word about this process that ``metrics.list_workers`` reads on PostgreSQL.
        """
        return self._file_lock(name) if self.is_sqlite else self._session_lock(name, "_shared", fact)

    def _file_lock(self, name: str) -> contextlib.AbstractContextManager[Lock]:
        return file_lock(Path(f"{self.engine.url.database}.{name}.lock"))

    @contextlib.contextmanager
    def _session_lock(self, name: str, kind: Kind, fact: str = "") -> Iterator[Lock]:
        lock = SessionLock(self.engine, name, kind, fact)
        with _translate():
            lock.acquire()
            try:
                yield lock
            finally:
                lock.release()

    def disconnect(self) -> None:
        """Close idle connections; later transactions open others."""
        self._connections.close()
        self.engine.dispose()

    def close(self) -> None:
        self.deltas.close()
        self._writer.close()
        self._pool.shutdown()
        self._is_closed = True
        self.disconnect()

    def _close_returned(self, _connection: object, entry: ConnectionPoolEntry) -> None:
        """Close a connection that a thread returns after the store was closed; the pool that it returns to is not used again."""
        if self._is_closed:
            entry.invalidate()


def _in_this_context(work: Callable[[Tx], T]) -> Callable[[Tx], T]:
    """Return work that runs with the caller's context variables in any thread."""
    context = contextvars.copy_context()
    return lambda tx: context.run(work, tx)


@contextlib.contextmanager
def _translate() -> Iterator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise _unavailable(error) from error
    except (DataError, UnicodeEncodeError) as error:
        # Wrong input, such as a NUL, half a character or a name longer than its column: a retry fails too.
        why = str(error.orig) if isinstance(error, DataError) else error.reason
        msg = f"A value cannot be stored: {why.splitlines()[0][:200]}."
        raise Invalid(msg, code="unstorable_value") from error
    except DBAPIError as error:
        # The server has ended the session.
        if not error.connection_invalidated:
            raise
        raise _unavailable(error) from error


def _unavailable(error: SQLAlchemyError) -> Transient:
    cause = error.orig if isinstance(error, DBAPIError) else error
    reason = str(cause).partition("\n")[0][:200]
    # The driver passes on the words of a server that refuses a connection, without their code.
    if re.search(r"too many (clients|connections)|remaining connection slots", str(cause)):
        hint = "Raise max_connections, or run fewer processes: kneo doctor adds up their connections."
        return Transient(f"The database accepts no more connections: {reason}.", code=TOO_MANY_CONNECTIONS, hint=hint)
    return Transient(f"The database did not answer: {reason}.", code="store_unavailable")


def lock_table(tx: Tx, name: str) -> None:
    """Lock a name until the transaction ends: an advisory lock on PostgreSQL, nothing on SQLite, which has one writer."""
    if tx.dialect.name == "postgresql":
        tx.connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:n))"), {"n": f"kneo:tx:{name}"})


def insert_ignoring_duplicates(tx: Tx, table: Table, **values: object) -> bool:
    """Insert a row unless its key exists; return whether it was inserted."""
    return _insert_or_not(tx.dialect.name, table).change(tx, values) == 1


@cache
def _insert_or_not(dialect: str, table: Table) -> Prepared:
    return Prepared(_insert(dialect, table).on_conflict_do_nothing())


def _insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    # Each dialect takes 50 ms to import, and a process needs one of them.
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table)
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(table)


def insert_many_ignoring_duplicates(tx: Tx, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert the rows whose key does not exist."""
    if rows:
        _insert_or_not(tx.dialect.name, table).change_many(tx, rows)


def upsert_many(tx: Tx, table: Table, key: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows with the same columns, or set those columns where the key exists."""
    if rows:
        statement = _insert(tx.dialect.name, table)
        values = {name: statement.excluded[name] for name in rows[0] if name not in key}
        tx.connection.execute(
            statement.on_conflict_do_update(index_elements=list(key), set_=values), [dict(row) for row in rows]
        )


def upserting(
    dialect: str, table: Table, key: Sequence[str], *, keep: Collection[str] = ()
) -> postgresql.Insert | sqlite.Insert:
    """Return the statement that inserts whole rows, or sets all columns but ``keep`` where the key exists."""
    statement = _insert(dialect, table)
    names = [column.name for column in table.c if column.name not in {*key, *keep}]
    return statement.on_conflict_do_update(
        index_elements=list(key), set_={name: statement.excluded[name] for name in names}
    )


def add_counts(tx: Tx, table: Table, counts: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows of counters, or add to the counters where the primary key exists."""
    _add_counts(tx.dialect.name, table, tuple(counts)).change_many(tx, rows)


@cache
def _add_counts(dialect: str, table: Table, counts: tuple[str, ...]) -> Prepared:
    statement = _insert(dialect, table)
    sums = {name: table.c[name] + statement.excluded[name] for name in counts}
    return Prepared(statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=sums))


def upsert(tx: Tx, table: Table, key: dict[str, object], **values: object) -> None:
    """Insert a row, or set these columns where the key exists."""
    statement = _insert(tx.dialect.name, table).values(**key, **values)
    tx.connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))


def open_engine(url: str) -> Engine:
    """Connect to ``sqlite:///path`` or ``postgresql+psycopg://…``.

    A missing SQLite file is created with mode 0600, its folder with 0700, and errors do not show the values of statements: runs
    contain what people wrote.

    Raises:
        Invalid: ``invalid_setting``: the driver for PostgreSQL is not installed.
    """
    if not url.startswith("sqlite:///"):
        name = f"{APPLICATION}{platform.node()[:40]}:{os.getpid()}"
        options = {**_KEEPALIVE, "options": _POSTGRES_OPTIONS, "application_name": name}
        options = {name: value for name, value in options.items() if name not in make_url(url).query}
        try:
            engine = create_engine(url, hide_parameters=True, connect_args=options, **_POOL, **_JSON)
        except ModuleNotFoundError as error:
            msg = "KNEO_SERV_DATABASE_URL names a PostgreSQL database, and the driver for it is not installed."
            raise Invalid(msg, code="invalid_setting", hint=install_extra("postgres")) from error
        event.listen(engine, "before_cursor_execute", _check_text, retval=True)
        event.listen(engine, "after_cursor_execute", _watch_idle)
        check_idle_connections(engine)
        return engine
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    # `FileConnections` is the pool.
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, hide_parameters=True, **_JSON
    )
    event.listen(engine, "before_cursor_execute", _check_text, retval=True)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _check_text(
    _connection: Connection, _cursor: object, sql: str, parameters: Parameters, _more: object, many: bool
) -> tuple[str, Parameters]:
    """Refuse a text with a NUL on both databases, as PostgreSQL does.

    Raises:
        Invalid: ``unstorable_value``.
    """
    for values in parameters if many else (parameters,):
        for value in values.values() if isinstance(values, dict) else values:
            if type(value) is str and "\0" in value:
                msg = "A value cannot be stored: it contains a NUL character."
                raise Invalid(msg, code="unstorable_value", hint="Leave the NUL character out.")
    return sql, parameters


def _watch_idle(connection: Connection, _cursor: object, _sql: str, _values: object, _more: object, many: bool) -> None:
    # After a batch of statements the server does not measure the idle time of the transaction; another statement restarts it.
    if many:
        with contextlib.closing(connection.connection.cursor()) as cursor:
            cursor.execute("SELECT 1")


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions: a deferred one that starts by reading cannot be upgraded while another process
    # writes, regardless of the busy timeout.
    connection.isolation_level = None
    _use_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite reports "locked" without waiting when several processes switch a new database at once.
    deadline = monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return
