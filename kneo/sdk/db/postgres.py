"""Runs in PostgreSQL."""

from __future__ import annotations

from kneo.clock import Clock
from kneo.errors import Usage
from kneo.sdk.db import Database


class PostgresDb(Database):
    """Runs in a PostgreSQL database; needs ``kneo[postgres]``.

    Args:
        db_url: ``postgresql://…``.
        clock: Where the time comes from.
    """

    def __init__(self, db_url: str, *, clock: Clock | None = None) -> None:
        if not db_url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            msg = "PostgresDb takes a db_url that begins with postgresql://."
            raise Usage(msg)
        super().__init__(db_url, clock)
