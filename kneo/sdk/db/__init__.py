"""Databases of runs: a SQLite file, or PostgreSQL."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from kneo.clock import Clock
from kneo.settings import from_env
from kneo.store import migrate
from kneo.store.service_key import find_service_key


class RunDatabase(migrate.Database):
    """A database that is opened on first use; decisions are signed with its service key.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.
        clock: The source of the time.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        super().__init__(url, lambda: find_service_key(from_env().on(url)), clock)


def scratch() -> RunDatabase:
    """Create a temporary database that is removed at the end of this process."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-"))
    temporary = RunDatabase(f"sqlite:///{folder / 'runs.db'}")

    def remove() -> None:
        temporary.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return temporary
