"""Runs in a file."""

from __future__ import annotations

from pathlib import Path

from kneo.clock import Clock
from kneo.errors import Usage
from kneo.sdk.db import Database


class SqliteDb(Database):
    """Runs in a SQLite file, for one process at a time.

    Args:
        db_file: The file; it is made when it is not there.
        db_url: The same as ``sqlite:///…``.
        clock: Where the time comes from.
    """

    def __init__(
        self, db_file: str | Path | None = None, *, db_url: str | None = None, clock: Clock | None = None
    ) -> None:
        if (db_file is None) == (db_url is None):
            msg = "SqliteDb takes db_file or db_url."
            raise Usage(msg, hint='SqliteDb(db_file="workflow.db")')
        path = Path(db_file if db_file is not None else str(db_url).removeprefix("sqlite:///")).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(f"sqlite:///{path}", clock)
