"""Bringing a database to this version's tables. Alembic does the work and is imported only when there is some."""

from __future__ import annotations

import importlib
import re
import sqlite3
import threading
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from sqlalchemy import inspect, text

from kneo.clock import Clock
from kneo.errors import Invalid, Transient
from kneo.store.engine import BUSY_TIMEOUT_MS, FindKey, Store, Tx, no_key, open_engine

HEAD = "0022"
"""The newest migration; a test holds it against the folder."""

MIGRATIONS = Path(__file__).with_name("migrations")


VERSION_TABLE = "alembic_version"

PUBLISHED = frozenset({"schema_migrations", "run_queue"})
"""Tables of the database of the published platform, whose default file has the same name as ours."""

_migrating = threading.Lock()
"""Held while this process migrates a database: Alembic keeps the connection it works on in variables of its modules, so a
second thread would work on the first one's."""


def open_store(url: str, clock: Clock, find_key: FindKey = no_key) -> Store:
    """Open a database and bring it to this version; ``find_key`` finds the key that decisions are signed with.

    Raises:
        Invalid: ``schema_too_new``: the database was written by a newer version; ``store_not_ours``: it holds something else.
            Nothing was changed in it.
        Transient: it cannot be reached.
    """
    if url.startswith("sqlite:///"):
        _check_file(Path(url.removeprefix("sqlite:///")))
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
        return _version(tx)


def migrate(store: Store) -> None:
    """Apply what is missing, as one transaction that only one process and only one of its threads runs.

    Raises:
        Invalid: ``schema_too_new`` or ``store_not_ours``; see ``open_store``.
    """
    with _migrating:
        with store.read() as tx:
            version = _version(tx)
            if version is None:
                _check_tables(inspect(tx.connection).get_table_names())
        if version == HEAD:
            return
        if version is not None and not re.fullmatch(r"\d{4}", version):
            raise NotOurs(f"schema version {version[:40]}")
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


class NotOurs(Invalid):
    """The database is not Kneo's."""

    default_code = "store_not_ours"

    def __init__(self, holds: str, *, published: bool = False) -> None:
        whose = "the published platform's, which keeps its runs in other tables" if published else "not Kneo's"
        super().__init__(
            f"The database that KNEO_SERV_DATABASE_URL names is {whose}: it holds {holds}. Nothing was changed in it.",
            hint="Name an empty database, or a SQLite file that does not exist yet, and keep this one as it is.",
        )


def _version(tx: Tx) -> str | None:
    if not inspect(tx.connection).has_table(VERSION_TABLE):
        return None
    version = tx.connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - our own name
    return str(version) if version is not None else None


def _check_tables(names: Collection[str]) -> None:
    """Refuse a database that has tables and no version of ours."""
    others = sorted(set(names) - {VERSION_TABLE})
    if others:
        shown = ", ".join(name[:60] for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise NotOurs(f"the tables {shown}{more}", published=set(others) >= PUBLISHED)


def _check_file(path: Path) -> None:
    """Refuse a file that is not Kneo's before it is opened: opening changes how SQLite writes it."""
    try:
        if not path.stat().st_size:
            return
    except OSError:
        return  # opening it makes it, or says what is wrong
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
        ) as db:
            names = [str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    except sqlite3.OperationalError as error:
        msg = f"The database did not answer: {error}."
        raise Transient(msg, code="store_unavailable") from error
    except sqlite3.DatabaseError as error:
        raise NotOurs("something that is not a SQLite database") from error
    if VERSION_TABLE not in names:
        _check_tables([name for name in names if not name.startswith("sqlite_")])
