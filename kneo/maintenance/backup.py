"""Copies of a SQLite database, taken while it is in use."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from kneo.errors import Invalid, NotFound


def backup_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Copy a database as it is at one moment, whoever writes to it meanwhile.

    Raises:
        NotFound: there is no database at ``source``.
        Invalid: the copy is damaged, or ``destination`` is ``source``.
    """
    return _copy(Path(source), Path(destination))


def restore_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Put a backup in the place of a database, all of it or none. Stop what uses the database first.

    Raises:
        NotFound: there is no backup at ``source``.
        Invalid: the backup is damaged, or ``destination`` is ``source``.
    """
    answer = _copy(Path(source), Path(destination))
    for suffix in ("-wal", "-shm"):
        Path(f"{destination}{suffix}").unlink(missing_ok=True)
    return answer


def _copy(source: Path, destination: Path) -> dict[str, object]:
    if not source.is_file():
        msg = f"There is no database at {source}."
        raise NotFound(msg)
    if source.resolve() == destination.resolve():
        msg = f"{source} cannot be copied onto itself."
        raise Invalid(msg)
    destination.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Beside its place and then into it, so that a copy that breaks off leaves what was there.
    draft = destination.with_name(f"{destination.name}.new")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(mode=0o600)
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(draft)) as new:
            old.backup(new)
            found = new.execute("PRAGMA integrity_check").fetchone()[0]
            # A database in WAL mode would leave files beside the copy.
            new.execute("PRAGMA journal_mode=DELETE")
        if found != "ok":
            msg = f"The copy of {source} is damaged: {found[:200]}"
            raise Invalid(msg, code="backup_damaged")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(destination)
    finally:
        draft.unlink(missing_ok=True)
    return {"source": str(source), "destination": str(destination), "bytes_copied": destination.stat().st_size}
