"""Databases of runs: a SQLite file, or PostgreSQL; and the values that are stored with a run."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from kneo.clock import Clock
from kneo.errors import Usage
from kneo.settings import from_env
from kneo.store.migrate import Database
from kneo.store.service_key import find_service_key, service_key

__all__ = ["Database", "RunDatabase", "encode_value", "scratch"]

MAX_CHARS = 1_000_000
"""Characters of JSON in one value."""


class RunDatabase(Database):
    """A database that is opened on first use; decisions are signed with its service key.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.
        clock: The source of the time.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        super().__init__(url, lambda: find_service_key(from_env().on(url)), clock)

    def check_service_key(self) -> None:
        """Check that there is a service key, without opening the database.

        Raises:
            Invalid: ``no_service_key``.
        """
        service_key(from_env().on(self.url))


def scratch() -> RunDatabase:
    """Create a temporary database that is removed at the end of this process."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-"))
    temporary = RunDatabase(f"sqlite:///{folder / 'runs.db'}")

    def remove() -> None:
        temporary.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return temporary


def encode_value(value: object, subject: str, *, sort_keys: bool = False) -> str:
    """Encode a value as JSON, to be stored with a run.

    Args:
        value: The value.
        subject: The value in words, for messages.
        sort_keys: Whether maps that are equal have the same text, for digests.

    Raises:
        Usage: ``not_json`` or ``too_large``: it cannot be stored.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=sort_keys, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{subject} cannot be stored with its run: {error}"
        hint = "Keep it to texts, numbers, lists and maps; open clients and files where they are used."
        raise Usage(msg, code="not_json", hint=hint) from error
    if len(text) > MAX_CHARS:
        msg = f"{subject} has {len(text)} characters of JSON; the limit is {MAX_CHARS}."
        raise Usage(msg, code="too_large", hint="Store large values elsewhere, and pass their names.")
    return text
