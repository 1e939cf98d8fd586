"""Runs in a PostgreSQL database."""

from __future__ import annotations

from kneo.clock import Clock
from kneo.embed.database import RunDatabase
from kneo.errors import Usage


class PostgresDb(RunDatabase):
    """A PostgreSQL database of runs; needs ``kneo[postgres]``.

    Args:
        db_url: ``postgresql://…``.
        clock: The source of the time.
    """

    def __init__(self, db_url: str, *, clock: Clock | None = None) -> None:
        if not db_url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            msg = "PostgresDb needs a db_url that begins with postgresql://."
            raise Usage(msg)
        super().__init__(db_url, clock)
