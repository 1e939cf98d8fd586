"""Process locks: the operating system's for a SQLite file, advisory locks of the server for PostgreSQL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from kneo.clock import monotonic
from kneo.store.connections import is_readable

Kind = Literal["", "_shared"]

CHECK_SECONDS = 1.0
"""The longest time between two checks of a held lock."""

ASK_SECONDS = 10.0
"""The longest time between two checks that ask the server."""


class Lock(Protocol):
    """A lock that a process tried to acquire; true where it did."""

    def __bool__(self) -> bool: ...

    def held(self) -> bool:
        """Return whether the lock is held; a lost one is not, until ``renew`` acquires it again."""
        ...

    def renew(self) -> bool:
        """Acquire a lost lock again; return whether it is held."""
        ...


@dataclass(frozen=True)
class FileLock:
    """A lock on a file next to a SQLite database, held until the process ends."""

    acquired: bool

    def __bool__(self) -> bool:
        return self.acquired

    held = renew = __bool__


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[FileLock]:
    """Try to lock a file until the block ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield FileLock(acquired=False)
        else:
            yield FileLock(acquired=True)
    finally:
        os.close(descriptor)


class SessionLock:
    """An advisory lock of a PostgreSQL session, lost when the server restarts or ends the session.

    Args:
        engine: The database.
        name: The name of the lock.
        kind: Whether the lock is shared.
        fact: A word about the holder, at the end of the name of the session, for others to read.
    """

    def __init__(self, engine: Engine, name: str, kind: Kind = "", fact: str = "") -> None:
        self._engine = engine
        self._fact = fact
        self._name = f"kneo:{name}"
        self._kind = kind
        self._mutex = threading.Lock()
        self._connection: Connection | None = None
        self._checked_at = self._asked_at = 0.0

    def __bool__(self) -> bool:
        return self._connection is not None

    def acquire(self) -> bool:
        """Try to acquire the lock on a connection of its own.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            acquired = connection.execute(
                text(f"SELECT pg_try_advisory_lock{self._kind}(hashtext(:n))"), {"n": self._name}
            ).scalar()
            if acquired and self._fact:
                named = "SELECT set_config('application_name', split_part(current_setting('application_name'), ' ', 1) || ' ' "
                named += "|| split_part(current_setting('application_name'), ' ', 2) || ' ' || :f, false)"
                connection.execute(text(named), {"f": self._fact})
        except BaseException:
            connection.close()
            raise
        if not acquired:
            connection.close()
            return False
        self._connection, self._checked_at = connection, monotonic()
        self._asked_at = self._checked_at
        return True

    def held(self) -> bool:
        with self._mutex:
            return self._is_held()

    def _is_held(self) -> bool:
        if self._connection is None:
            return False
        if monotonic() - self._checked_at < CHECK_SECONDS:
            return True
        now = self._checked_at = monotonic()
        driver = self._connection.connection.driver_connection
        # The lock lives as long as the session. A server that ends it sends something; a lost network answers no statement.
        if driver is not None and not is_readable(driver) and now - self._asked_at < ASK_SECONDS:
            return True
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self._drop()
            return False
        self._asked_at = now
        return True

    def renew(self) -> bool:
        with self._mutex:
            if self._is_held():
                return True
            try:
                return self.acquire()
            except SQLAlchemyError:
                return False

    def release(self) -> None:
        """Release the lock, unless it was lost."""
        with self._mutex:
            connection = self._connection
            if connection is None:
                return
            try:
                connection.execute(text(f"SELECT pg_advisory_unlock{self._kind}(hashtext(:n))"), {"n": self._name})
            except SQLAlchemyError:
                self._drop()
                return
            self._connection = None
            connection.close()

    def _drop(self) -> None:
        """Discard the connection: returned to the pool it could still have the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()
            with contextlib.suppress(SQLAlchemyError):
                connection.close()
