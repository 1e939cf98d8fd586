"""The schema's version: an empty database gets the newest schema, an older one is migrated by Alembic."""

from __future__ import annotations

import importlib
import re
import sqlite3
import threading
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select, text

from kneo.clock import Clock, SystemClock
from kneo.errors import Invalid, Transient
from kneo.store import append_only, queue
from kneo.store.engine import BUSY_TIMEOUT_MS, FindKey, Store, Tx, lock_table, no_key, open_engine
from kneo.store.tables import metadata
from kneo.trust.sealing import NO_KEYS, DataKeys

HEAD = "kneo_0006"
"""The newest revision; a test compares it with the folder."""

MIGRATIONS = Path(__file__).with_name("migrations")

VERSION_TABLE = "alembic_version"

_versions = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

_REVISION, _DEVELOPMENT_REVISION = re.compile(r"kneo_\d{4}"), re.compile(r"\d{4}")

PUBLISHED = frozenset({"schema_migrations", "run_queue"})
"""Tables of the published platform's database, whose default file has the same name as Kneo's."""

_migrating = threading.Lock()
"""Held while this process migrates a database: Alembic keeps its connection in module variables."""


class ForeignDatabase(Invalid):
    """The database belongs to another program."""

    default_code = "store_not_ours"

    def __init__(self, content: str, *, published: bool = False) -> None:
        owner = "the published platform's, which keeps its runs in other tables" if published else "not Kneo's"
        super().__init__(
            f"The database in KNEO_SERV_DATABASE_URL is {owner}: it has {content}. Nothing was changed in it.",
            hint="Name an empty database, or a SQLite file that does not exist yet, and keep this one as it is.",
        )


class Database:
    """A database that is opened at first use, so that checking a spec creates no file.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        find_key: Finds the key that signs receipts; without a key there are no receipts.
        clock: The source of the time.
        data_keys: Seal the bodies of journals.
    """

    def __init__(
        self, url: str, find_key: FindKey = no_key, clock: Clock | None = None, data_keys: DataKeys = NO_KEYS
    ) -> None:
        self.url = url
        self._find_key, self._data_keys = find_key, data_keys
        self._clock = clock or SystemClock()
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> Store:
        """The open database, at the newest revision."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self.url, self._clock, self._find_key, self._data_keys)
            return self._store

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = None


def open_store(url: str, clock: Clock, find_key: FindKey = no_key, data_keys: DataKeys = NO_KEYS) -> Store:
    """Open a database and bring its schema to the newest revision.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        clock: The source of the time.
        find_key: Finds the key that signs receipts.
        data_keys: Seal the bodies of journals.

    Raises:
        Invalid: ``schema_too_new`` for the schema of a newer version, ``schema_unsupported`` for that of a development version,
            ``store_not_ours`` for another program's database. Nothing was changed in it.
        Transient: the database cannot be reached.
    """
    if url.startswith("sqlite:///"):
        _check_file(Path(url.removeprefix("sqlite:///")))
    store = Store(open_engine(url), clock, find_key, data_keys)
    try:
        if current_version(store) != HEAD:
            migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def current_version(store: Store) -> str | None:
    """Read the revision of a database; ``None`` for an empty one."""
    with store.read() as tx:
        return _version(tx.connection)


def migrate(store: Store) -> None:
    """Create or migrate the schema in one transaction, which one process and one of its threads executes at a time.

    Raises:
        Invalid: as in ``open_store``.
    """
    with _migrating, store.write() as tx:
        lock_table(tx, "schema")
        version = _version(tx.connection)
        if version is None:
            _check_tables(inspect(tx.connection).get_table_names())
            create_schema(tx)
        elif version != HEAD:
            _check_revision(version)
            # Alembic takes 250 ms to import, which commands on a current database do not pay.
            command = importlib.import_module("alembic.command")
            config = importlib.import_module("alembic.config").Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = tx.connection
            command.upgrade(config, "head")


def create_schema(tx: Tx) -> None:
    """Create the tables and append-only triggers of the newest revision in an empty database."""
    dialect = tx.dialect.name
    for table in metadata.sorted_tables:
        if dialect == "sqlite" and table.info.get("without_rowid"):
            table.dialect_options["sqlite"]["with_rowid"] = False
        for index in table.indexes:
            if where := index.info.get("where"):
                index.dialect_options[dialect]["where"] = text(where)
    metadata.create_all(tx.connection, checkfirst=False)
    append_only.create_triggers(tx)
    queue.create_schema(tx)
    _versions.create(tx.connection)
    tx.connection.execute(insert(_versions).values(version_num=HEAD))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(_versions.c.version_num)).scalar()


def _check_revision(version: str) -> None:
    if _DEVELOPMENT_REVISION.fullmatch(version):
        msg = f"The database has schema {version} of a development version of Kneo, which cannot be upgraded."
        raise Invalid(msg, code="schema_unsupported", hint="Use an empty database; it gets the schema of this version.")
    if not _REVISION.fullmatch(version):
        raise ForeignDatabase(f"schema version {version[:40]}")
    if version > HEAD:
        msg = f"The database has schema {version}, which is newer than schema {HEAD} of this version of Kneo."
        raise Invalid(msg, code="schema_too_new", hint="Run the newer version of Kneo, or restore a backup.")


def _check_tables(names: Collection[str]) -> None:
    """Refuse a database that has tables and no revision."""
    others = sorted(set(names) - {VERSION_TABLE})
    if others:
        shown = ", ".join(name[:60] for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise ForeignDatabase(f"the tables {shown}{more}", published=set(others) >= PUBLISHED)


def _check_file(path: Path) -> None:
    """Refuse another program's SQLite file before it is opened: opening changes the file's journal mode."""
    try:
        if not path.stat().st_size:
            return
    except OSError:
        return  # the engine creates the file, or reports the error
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
        ) as db:
            names = [str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    except sqlite3.OperationalError as error:
        msg = f"The database did not answer: {error}."
        raise Transient(msg, code="store_unavailable") from error
    except sqlite3.DatabaseError as error:
        raise ForeignDatabase("something that is not a SQLite database") from error
    if VERSION_TABLE not in names:
        _check_tables([name for name in names if not name.startswith("sqlite_")])
