"""Runs in a SQLite file."""

from __future__ import annotations

from pathlib import Path

from kneo.clock import Clock
from kneo.embed.database import RunDatabase
from kneo.errors import Usage

SQLITE = "sqlite:///"


class SqliteDb(RunDatabase):
    """A SQLite file of runs, for one process at a time.

    Args:
        db_file: The file, created when it does not exist.
        db_url: The same as ``sqlite:///…``.
        clock: The source of the time.
    """

    def __init__(
        self, db_file: str | Path | None = None, *, db_url: str | None = None, clock: Clock | None = None
    ) -> None:
        if (db_file is None) == (db_url is None):
            msg = "SqliteDb needs either db_file or db_url."
            raise Usage(msg, hint='SqliteDb(db_file="workflow.db")')
        if db_url is not None and not db_url.startswith(SQLITE):
            msg = f"SqliteDb needs a db_url that begins with {SQLITE}."
            raise Usage(msg, hint="PostgresDb of kneo.sdk.db.postgres takes postgresql:// URLs.")
        path = Path(db_file or str(db_url).removeprefix(SQLITE)).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(f"sqlite:///{path}", clock)
