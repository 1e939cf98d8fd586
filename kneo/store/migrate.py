"""Bringing a database to this version's tables. Alembic does the work and is imported only when there is some."""

from __future__ import annotations

import importlib
from pathlib import Path

from sqlalchemy import inspect, text

from kneo.clock import Clock
from kneo.errors import Invalid
from kneo.store.engine import FindKey, Store, no_key, open_engine

HEAD = "0017"
"""The newest migration; a test holds it against the folder."""

MIGRATIONS = Path(__file__).with_name("migrations")


def open_store(url: str, clock: Clock, find_key: FindKey = no_key) -> Store:
    """Open a database and bring it to this version; ``find_key`` finds the key that decisions are signed with.

    Raises:
        Invalid: the database was written by a newer version.
        Transient: it cannot be reached.
    """
    store = Store(open_engine(url), clock, find_key)
    try:
        if current_version(store) != HEAD:
            migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def current_version(store: Store) -> str | None:
    """Read which migration the database is at; ``None`` for an empty one."""
    with store.read() as tx:
        if not inspect(tx.connection).has_table("alembic_version"):
            return None
        version = tx.connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return str(version) if version is not None else None


def migrate(store: Store) -> None:
    """Apply what is missing, as one transaction that only one process runs."""
    version = current_version(store)
    if version is not None and version > HEAD:
        msg = f"The database is at schema {version}, newer than {HEAD}, which this version of Kneo knows."
        raise Invalid(msg, code="schema_too_new", hint="Run the newer version of Kneo, or restore a backup.")
    # Alembic costs a quarter of a second to import; commands that find nothing to do must not pay it.
    command = importlib.import_module("alembic.command")
    config = importlib.import_module("alembic.config").Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.write() as tx:
        config.attributes["connection"] = tx.connection
        command.upgrade(config, "head")
