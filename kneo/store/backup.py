"""Backups: a SQLite file with a consistent snapshot of a database of either kind, copied while it is in use.

A backup of PostgreSQL has its tables, read in one snapshot. A backup can be opened with any SQLite tool and restored into either
kind of database.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from sqlalchemy import JSON, Table, bindparam, insert, select, text, type_coerce
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from kneo.clock import Clock
from kneo.errors import Conflict, Invalid, NotFound, Transient
from kneo.records.audit import ChainVerdict
from kneo.store import audit, browser_sessions, push_subscriptions, queue, runs, tasks
from kneo.store.engine import BUSY_TIMEOUT_MS, WORKER_LOCK, Store, Tx
from kneo.store.migrate import check_same_schema, open_store
from kneo.store.tables import metadata

ROWS_AT_ONCE = 500


def back_up(store: Store, destination: Path) -> ChainVerdict:
    """Copy a snapshot of a database; ``destination`` is replaced once the copy is complete and on disk.

    Returns:
        The verdict on the copy's audit log. A broken log is copied too, as evidence.

    Raises:
        Invalid: ``backup_damaged``: the copy is not intact. ``schema_too_new``: a newer version migrated the database.
        Transient: the database cannot be reached.
    """
    check_same_schema(store)
    with _draft(destination) as draft:
        if store.is_sqlite:
            assert store.engine.url.database is not None
            _copy_pages(Path(store.engine.url.database), draft)
        with closing(open_store(f"sqlite:///{draft}", store.clock)) as copy:
            if not store.is_sqlite:
                with store.read() as source, copy.write() as target:
                    _copy_rows(source, target)
            verdict = audit.verify(copy, waiting=None)
        _finish(draft)
    return verdict


def copy_file(source: Path, destination: Path) -> None:
    """Copy a SQLite database that may be in use.

    Raises:
        NotFound: there is no database at ``source``.
        Invalid: the copy is not intact, or ``destination`` is ``source``.
    """
    _check_different(source, destination)
    with _draft(destination) as draft:
        _copy_pages(source, draft)
        _finish(draft)


def _check_different(source: Path, destination: Path) -> None:
    if source.resolve() == destination.resolve():
        msg = f"{source} cannot be copied onto itself."
        raise Invalid(msg)


def restore(source: Path, store: Store) -> ChainVerdict:
    """Restore a backup into an empty PostgreSQL database, in one transaction.

    Raises:
        NotFound: there is no backup.
        Invalid: it is damaged, or written by a newer version.
        Conflict: the database is not empty, or a process executes steps on it.
    """
    with tempfile.TemporaryDirectory() as folder, store.exclusive(WORKER_LOCK) as lock:
        _check_unused(bool(lock), "the database")
        draft = Path(folder, "copy.sqlite")
        verdict = _prepare(source, draft, store.clock)
        with closing(open_store(f"sqlite:///{draft}", store.clock)) as copy, copy.read() as read, store.write() as tx:
            full = next((table.name for table in metadata.sorted_tables if _has_rows(tx, table)), None)
            if full is not None:
                msg = f"The database is not empty: it has {full}."
                hint = "Restore into an empty database, and point KNEO_SERV_DATABASE_URL at that one."
                raise Conflict(msg, code="store_not_empty", hint=hint)
            _copy_rows(read, tx)
            queue.restore(tx, timedelta(0))
            # The lock is lost when the server restarts.
            _check_unused(lock.held(), "the database")
    return verdict


def restore_file(source: Path, destination: Path, clock: Clock) -> ChainVerdict:
    """Replace a SQLite database by a backup, as a whole.

    Raises:
        NotFound: there is no backup.
        Invalid: it is damaged, or written by a newer version.
        Conflict: a process has the database open.
    """
    _check_different(source, destination)
    with _alone(destination), _draft(destination) as draft:
        verdict = _prepare(source, draft, clock)
        _finish(draft)
    return verdict


def vacuum(store: Store) -> tuple[int, int]:
    """Reclaim unused space and refresh the statistics of the query planner; return the bytes before and after.

    Raises:
        Transient: the database is busy or cannot be reached.
    """
    before = _size(store)
    if store.is_sqlite:
        _vacuum_file(str(store.engine.url.database))
    else:
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM (ANALYZE)")
    return before, _size(store)


def _vacuum_file(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)) as connection:
        try:
            for statement in ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.execute(statement)
        except sqlite3.OperationalError as error:
            msg = f"The database could not be vacuumed: {error}."
            raise Transient(msg, code="store_unavailable") from error


def _size(store: Store) -> int:
    if store.is_sqlite:
        database = store.engine.url.database
        assert database is not None
        files = (Path(f"{database}{suffix}") for suffix in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    with store.read() as tx:
        return int(tx.connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def _copy_pages(source: Path, draft: Path) -> None:
    if not source.is_file():
        msg = f"There is no database at {source}."
        raise NotFound(msg)
    try:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(draft)) as new:
            old.backup(new)
    except sqlite3.DatabaseError as error:
        msg = f"{source} is not a readable database: {error}."
        raise Invalid(msg, code="backup_damaged") from error


def _prepare(source: Path, draft: Path, clock: Clock) -> ChainVerdict:
    """Create a database of this version with the rows of a backup, in which no run has a driver, no link works and no person is signed in.

    The tables, indexes and triggers are created here: the file may have other triggers and views, or lack those that keep the
    audit log append-only.
    """
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix=f".{draft.name}.") as folder:
        copied = Path(folder, "copy.sqlite")
        _copy_pages(source, copied)
        _finish(copied)
        if _version(copied) is None:
            msg = f"{source} is a database of another program."
            raise Invalid(msg, code="backup_damaged")
        with closing(open_store(f"sqlite:///{draft}", clock)) as copy:
            _copy_into(source, copied, copy)
    with closing(open_store(f"sqlite:///{draft}", clock)) as copy:
        verdict = audit.verify(copy, waiting=None)
        if not verdict.valid:
            msg = f"The audit log of {source} is damaged: {verdict.problem}."
            raise Invalid(msg, code="backup_damaged", hint="Restore an earlier backup, and keep this one as evidence.")
        copy.transact(runs.clear_owners)
        # A link may have been used after the backup, a person may have signed out, and a browser unsubscribed.
        copy.transact(tasks.end_links)
        copy.transact(browser_sessions.end_all)
        copy.transact(push_subscriptions.end_all)
    return verdict


def _copy_into(source: Path, copied: Path, copy: Store) -> None:
    try:
        with (
            closing(open_store(f"sqlite:///{copied}", copy.clock)) as old,
            old.read() as rows,
            copy.write() as target,
        ):
            check_same_schema(old)
            _copy_rows(rows, target)
    except (SQLAlchemyError, ValueError, TypeError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        msg = f"{source} has rows that Kneo does not store: {str(cause).splitlines()[0][:200]}."
        raise Invalid(
            msg, code="backup_damaged", hint="Restore an earlier backup, and keep this one as evidence."
        ) from error


def _version(file: Path) -> str | None:
    with closing(sqlite3.connect(file)) as connection:
        known = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    return str(row[0]) if row else None


def _copy_rows(source: Tx, target: Tx) -> None:
    for table in metadata.sorted_tables:
        statement = insert(table).values({column.name: _raw(table, column.name) for column in table.columns})
        found = source.connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table)).mappings()
        for rows in found.partitions(ROWS_AT_ONCE):
            target.connection.execute(statement, [dict(row) for row in rows])


def _raw(table: Table, name: str) -> object:
    # None is NULL in a nullable column, and JSON's null in another one.
    column = table.columns[name]
    kind = JSON(none_as_null=bool(column.nullable)) if isinstance(column.type, JSON) else column.type
    return type_coerce(bindparam(name), kind)


def _has_rows(tx: Tx, table: Table) -> bool:
    return tx.connection.execute(select(table).limit(1)).first() is not None


@contextlib.contextmanager
def _draft(destination: Path) -> Iterator[Path]:
    """Write a file next to its destination and move it there at the end, so that a failed copy replaces nothing."""
    destination.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = destination.with_name(f"{destination.name}.new")
    _remove(draft)
    try:
        draft.touch(mode=0o600)
        yield draft
        draft.replace(destination)
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    draft.unlink(missing_ok=True)
    _remove_logs(draft)


def _remove_logs(database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def _finish(draft: Path) -> None:
    """Check a copy and make it one file on disk."""
    with closing(sqlite3.connect(draft)) as copy:
        try:
            # A database in WAL mode has further files.
            copy.execute("PRAGMA journal_mode=DELETE")
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            verdict = error
    if verdict != "ok":
        msg = f"The copy is damaged: {str(verdict)[:200]}"
        raise Invalid(msg, code="backup_damaged")
    with draft.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Open a SQLite database exclusively until the block ends.

    Raises:
        Conflict: ``store_in_use``: another process has it open.
    """
    if not database.is_file():
        _remove_logs(database)
        yield
        return
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            # Leaving WAL mode needs every other connection to be closed.
            mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            mode = "wal"
        except sqlite3.DatabaseError:
            mode = "delete"  # A damaged database may be replaced.
        _check_unused(mode == "delete", str(database))
        # SQLite would apply the log of the replaced database to the new one.
        _remove_logs(database)
        yield


def _check_unused(unused: bool, what: str) -> None:
    if not unused:
        msg = f"{what[:1].upper()}{what[1:]} is in use."
        raise Conflict(msg, code="store_in_use", hint="Stop all services, workers and controllers first.")
