"""The published platform's database, a SQLite file or PostgreSQL: opened read-only, checked, and read in pages."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Connection,
    Engine,
    Select,
    case,
    column,
    create_engine,
    func,
    inspect,
    make_url,
    select,
    table,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from kneo.distribution import install_extra
from kneo.errors import Invalid, NotFound, Transient
from kneo.extensions.kneo_serv.conversion import MAX_PAYLOAD_CHARS, SourceAuditEvent, SourceRun

MAX_VALUE_BYTES = 4 * MAX_PAYLOAD_CHARS
"""Bytes of one value that SQLite reads."""

CONNECT_SECONDS = 10

MIGRATIONS = (
    "base_run_state",
    "queue_and_operational_metadata",
    "checkpoint_unique_run_sequence",
    "run_session_id_and_filter_indexes",
)
"""The migrations of the schemas that are read, oldest first; schema 2 is of version 0.4.0, schema 4 of 1.2.0."""

OLDEST_SCHEMA = 2

TABLES = (
    "runs",
    "checkpoints",
    "audit_events",
    "project_metadata",
    "idempotency_records",
    "run_queue",
    "locks",
    "continuations",
)

_runs = table("runs", column("id"), column("payload"))
_checkpoints = table("checkpoints", *map(column, ("id", "run_id", "sequence", "created_at", "payload")))
_audit = table(
    "audit_events",
    *map(column, ("id", "event_type", "run_id", "continuation_id", "actor", "created_at", "payload")),
)
_metadata = table("project_metadata", column("key"), column("value"))
_migrations = table("schema_migrations", *map(column, ("version", "name", "applied_at")))


@dataclass(frozen=True)
class PublishedDatabase:
    """A consistent snapshot of the database.

    Attributes:
        kind: ``sqlite`` or ``postgresql``.
        schema: The number of its schema.
        id: What tells it from others: a digest of the times at which its schema was created.
        counts: The number of rows by table.
    """

    connection: Connection
    kind: str
    schema: int
    id: str
    counts: Mapping[str, int]

    def runs_after(self, last: str | None, limit: int) -> Sequence[SourceRun]:
        """Read the next runs in the order of their ids."""
        statement = select(_runs.c.id, _bounded(_runs.c.payload)).order_by(_runs.c.id).limit(limit)
        if last is not None:
            statement = statement.where(_runs.c.id > last)
        return [SourceRun(id=row[0], payload=_text(row[1])) for row in self._rows(statement)]

    def checkpoints_of(self, run_id: str, limit: int) -> Iterator[str | None]:
        """Read the JSON of the checkpoints of a run in their order."""
        order = _checkpoints.c.sequence, _checkpoints.c.created_at, _checkpoints.c.id
        statement = select(_bounded(_checkpoints.c.payload)).where(_checkpoints.c.run_id == run_id)
        for row in self._rows(statement.order_by(*order).limit(limit)):
            yield _text(row[0])

    def events_of(self, run_id: str, limit: int) -> Sequence[SourceAuditEvent]:
        """Read the audit events of a run in their order."""
        return self._events(select(*_EVENT).where(_audit.c.run_id == run_id).order_by(*_IN_TIME).limit(limit))

    def events_after(self, last: str | None, limit: int) -> Sequence[SourceAuditEvent]:
        """Read the next audit events in the order of their ids."""
        statement = select(*_EVENT).order_by(_audit.c.id).limit(limit)
        return self._events(statement if last is None else statement.where(_audit.c.id > last))

    def project_value(self, key: str) -> str | None:
        """Read the JSON of a value of the project."""
        found = list(self._rows(select(_bounded(_metadata.c.value)).where(_metadata.c.key == key)))
        return _text(found[0][0]) if found else None

    def _events(self, statement: Select[Any]) -> Sequence[SourceAuditEvent]:
        return [
            SourceAuditEvent(row[0], row[1], row[2], row[3], row[4], row[5], _text(row[6]))
            for row in self._rows(statement)
        ]

    def _rows(self, statement: Select[Any]) -> Iterator[Sequence[object]]:
        with _translated():
            yield from self.connection.execute(statement)


def _bounded(payload: ColumnClause[object]) -> ColumnElement[object]:
    return case((func.length(payload) <= MAX_PAYLOAD_CHARS, payload), else_=None)


_EVENT = (*(one for one in _audit.c if one.name != "payload"), _bounded(_audit.c.payload))
_IN_TIME = (_audit.c.created_at, _audit.c.id)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


@contextlib.contextmanager
def open_published(location: str) -> Iterator[PublishedDatabase]:
    """Open a database of the published platform and read one snapshot of it; nothing is written to it.

    Args:
        location: The path of a SQLite file, or a URL of PostgreSQL.

    Raises:
        NotFound: there is no such file.
        Invalid: ``import_unsupported``: it is another database, or has a schema that this version does not know.
            ``import_unreadable``: it is damaged.
        Transient: it cannot be reached.
    """
    with _translated():
        engine = _open(location)
        try:
            with engine.connect() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN")
                yield _checked(connection)
        finally:
            engine.dispose()


def _checked(connection: Connection) -> PublishedDatabase:
    names = set(inspect(connection).get_table_names())
    if "alembic_version" in names:
        msg = "The source is a database of Kneo itself."
        raise Invalid(msg, code="import_unsupported", hint="Copy it with kneo maintenance backup and restore.")
    missing = sorted({"schema_migrations", *TABLES} - names)
    if missing:
        msg = f"The source is no database of the published platform: it has no table {missing[0]}."
        raise Invalid(msg, code="import_unsupported", hint="Name the file or the database that kneo-serv uses.")
    rows = connection.execute(select(_migrations).order_by(_migrations.c.version).limit(len(MIGRATIONS) + 1)).all()
    applied = tuple((row[0], row[1]) for row in rows)
    if len(applied) < OLDEST_SCHEMA or applied != tuple(enumerate(MIGRATIONS[: len(applied)], 1)):
        last = f"{applied[-1][0]} ({str(applied[-1][1])[:60]})" if applied else "none"
        msg = f"The source has the schema {last}, and this version of Kneo reads the schemas {OLDEST_SCHEMA} to {len(MIGRATIONS)}."
        raise Invalid(msg, code="import_unsupported", hint="Migrate it with kneo-serv 1.2.0, or use a newer Kneo.")
    identity = hashlib.sha256("\n".join(str(row[2]) for row in rows[:OLDEST_SCHEMA]).encode()).hexdigest()[:16]
    counts = {name: connection.execute(select(func.count()).select_from(table(name))).scalar_one() for name in TABLES}
    return PublishedDatabase(connection, connection.dialect.name, len(applied), identity, counts)


def _open(location: str) -> Engine:
    if location.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        try:
            url = make_url(location.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
            engine = create_engine(url, hide_parameters=True, connect_args={"connect_timeout": CONNECT_SECONDS})
        except (ArgumentError, ValueError) as error:
            msg = "The source is no URL of PostgreSQL, such as postgresql://user@host/database."
            raise Invalid(msg, code="import_unsupported") from error
        except ModuleNotFoundError as error:
            msg = "The driver for PostgreSQL is not installed."
            raise Invalid(msg, code="invalid_setting", hint=install_extra("postgres")) from error
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    path = Path(location.removeprefix("sqlite:///"))
    if not path.is_file():
        msg = f"There is no file {path}."
        raise NotFound(msg, hint="Name the SQLite file of kneo-serv, by default .kneo/kneo_runs.sqlite.")
    return create_engine("sqlite://", creator=lambda: _connect(path), poolclass=StaticPool, hide_parameters=True)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    # Texts that are not UTF-8 are read with replacements; the schema of the file runs no functions.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA query_only=ON")
    return connection


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = str(cause).partition("\n")[0][:200]
        if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError):
            msg = f"The source cannot be read: {reason}."
            raise Invalid(msg, code="import_unreadable", hint="Import a copy that sqlite3 reads.") from error
        msg = f"The source did not answer: {reason}."
        raise Transient(msg, code="import_unavailable", hint="Run the import again; it continues.") from error
    except sqlite3.DatabaseError as error:
        msg = f"The source cannot be read: {str(error)[:200]}."
        raise Invalid(msg, code="import_unreadable", hint="Import a copy that sqlite3 reads.") from error
