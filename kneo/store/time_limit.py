"""The time that one statement may take: a search that reads too much is ended instead of keeping a connection busy."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from time import monotonic

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kneo.store.engine import Tx

QUERY_CANCELED = "57014"
"""The SQLSTATE of a statement that PostgreSQL ended."""

MAX_MILLISECONDS = 2**31 - 1
"""The longest limit that PostgreSQL has."""

INSTRUCTIONS = 10_000
"""Instructions of SQLite between two looks at the time: a fraction of a millisecond."""


class StatementTooSlow(Exception):
    """A statement reached its time limit and was ended. The transaction can only be rolled back."""


@contextlib.contextmanager
def limit_statements(tx: Tx, seconds: float) -> Iterator[None]:
    """End statements of a block that take longer than a time: each one on PostgreSQL, all together on SQLite.

    Raises:
        StatementTooSlow: a statement was ended.
    """
    limited = _sqlite(tx, seconds) if tx.dialect.name == "sqlite" else _postgresql(tx, seconds)
    try:
        with limited:
            yield
    except DBAPIError as error:
        if _was_ended(error.orig):
            raise StatementTooSlow from error
        raise


@contextlib.contextmanager
def _sqlite(tx: Tx, seconds: float) -> Iterator[None]:
    driver = tx.connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    deadline = monotonic() + seconds
    driver.set_progress_handler(lambda: monotonic() > deadline, INSTRUCTIONS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, INSTRUCTIONS)


@contextlib.contextmanager
def _postgresql(tx: Tx, seconds: float) -> Iterator[None]:
    tx.connection.execute(_SET, {"limit": f"{min(max(1, round(seconds * 1000)), MAX_MILLISECONDS)}ms"})
    yield
    # After an error the transaction is rolled back, and the setting with it.
    tx.connection.execute(_RESET)


_SET = text("SELECT set_config('statement_timeout', :limit, true)")
_RESET = text("SET LOCAL statement_timeout TO DEFAULT")
"""Restores the limit of the role or the URL, where an operator set one."""


def _was_ended(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT
    return getattr(error, "sqlstate", None) == QUERY_CANCELED
