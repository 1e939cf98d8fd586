"""Locks that live as long as their process: the operating system's on a SQLite file, the server's on PostgreSQL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from kneo.clock import monotonic

Kind = Literal["", "_shared"]

LOOK_SECONDS = 1.0
"""How old an answer to the question whether a lock is still held may be."""


class Lock(Protocol):
    """A lock that a process tried to take; true where it got it."""

    def __bool__(self) -> bool: ...

    def held(self) -> bool:
        """Say whether the lock is held now; once it was lost it is not, until ``renew`` takes it again."""
        ...

    def renew(self) -> bool:
        """Take the lock again where it was lost; say whether it is held then."""
        ...


class FileLock:
    """A lock on a file beside a SQLite database. The operating system keeps it for as long as the process lives."""

    def __init__(self, *, got: bool) -> None:
        self._got = got

    def __bool__(self) -> bool:
        return self._got

    def held(self) -> bool:
        return self._got

    def renew(self) -> bool:
        return self._got


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[FileLock]:
    """Try to lock a file until the block ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield FileLock(got=False)
        else:
            yield FileLock(got=True)
    finally:
        os.close(descriptor)


class SessionLock:
    """An advisory lock of a PostgreSQL session, which ends with it: when the server restarts or ends the session.

    Args:
        engine: The database.
        name: What is locked.
        kind: Whether others may hold it too.
    """

    def __init__(self, engine: Engine, name: str, kind: Kind = "") -> None:
        self._engine = engine
        self._name = f"kneo:{name}"
        self._kind = kind
        self._turn = threading.Lock()
        self._connection: Connection | None = None
        self._looked_at = 0.0

    def __bool__(self) -> bool:
        return self._connection is not None

    def acquire(self) -> bool:
        """Try to take the lock on a connection of its own.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            got = connection.execute(
                text(f"SELECT pg_try_advisory_lock{self._kind}(hashtext(:n))"), {"n": self._name}
            ).scalar()
        except BaseException:
            connection.close()
            raise
        if not got:
            connection.close()
            return False
        self._connection, self._looked_at = connection, monotonic()
        return True

    def held(self) -> bool:
        with self._turn:
            return self._is_held()

    def _is_held(self) -> bool:
        if self._connection is None:
            return False
        if monotonic() - self._looked_at < LOOK_SECONDS:
            return True
        try:
            # The lock lives exactly as long as the session, so a session that answers has it.
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self._drop()
            return False
        self._looked_at = monotonic()
        return True

    def renew(self) -> bool:
        with self._turn:
            if self._is_held():
                return True
            try:
                return self.acquire()
            except SQLAlchemyError:
                return False

    def release(self) -> None:
        """Give the lock back; one that was lost needs no giving back."""
        with self._turn:
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
        """Throw the connection away: back in the pool it could still have the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()
            with contextlib.suppress(SQLAlchemyError):
                connection.close()
