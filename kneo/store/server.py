"""Facts about the database server, and whether a worker uses a database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from kneo.store.engine import WORKER_LOCK, Store

CONNECTIONS_PER_PROCESS = 15
"""The most connections that a process of Kneo opens."""

_HELD = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND objid = (hashtext(:name)::bigint & 4294967295)"
)


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A PostgreSQL server.

    Attributes:
        now: The time of its clock.
        max_connections: The connections that it accepts.
        reserved: Those of them that ordinary users do not get.
        used: Those of them that are open.
    """

    now: datetime
    max_connections: int
    reserved: int
    used: int


def read_server(store: Store) -> ServerFacts | None:
    """Read the facts of the server; ``None`` for SQLite, which has none."""
    if store.is_sqlite:
        return None
    with store.read() as tx:
        row = tx.connection.execute(
            text(
                "SELECT clock_timestamp(), current_setting('max_connections')::int, "
                "current_setting('superuser_reserved_connections')::int + "
                "coalesce(current_setting('reserved_connections', true), '0')::int, "
                "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
            )
        ).one()
    return ServerFacts(now=row[0], max_connections=row[1], reserved=row[2], used=row[3])


def has_worker(store: Store) -> bool:
    """Return whether a process executes the steps of runs on this database."""
    if store.is_sqlite:
        with store.exclusive(WORKER_LOCK) as lock:
            return not lock
    with store.read() as tx:
        held: int = tx.connection.execute(text(_HELD), {"name": f"kneo:{WORKER_LOCK}"}).scalar_one()
    return held > 0
