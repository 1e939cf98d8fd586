"""Where runs are kept: a file, or a PostgreSQL database."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from kneo.clock import Clock
from kneo.settings import from_env
from kneo.store import migrate
from kneo.store.service_key import find_service_key


class Database(migrate.Database):
    """A database that is opened when it is first needed; decisions are signed with the key that belongs to it.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.
        clock: Where the time comes from.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        super().__init__(url, lambda: find_service_key(from_env().on(url)), clock)


def scratch() -> Database:
    """Make a database that is gone when this process is."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-"))
    made = Database(f"sqlite:///{folder / 'runs.db'}")

    def forget() -> None:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(forget)
    return made
