"""The schema's version: an empty database gets the newest schema, an older one is migrated by Alembic."""

from __future__ import annotations

import importlib
import logging
import re
import sqlite3
import threading
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    delete,
    insert,
    inspect,
    select,
    text,
)

from kneo.clock import Clock, SystemClock, monotonic, sleep
from kneo.errors import Invalid, Transient
from kneo.store import append_only, queue
from kneo.store.engine import BUSY_TIMEOUT_MS, FindKey, Store, Tx, lock_table, no_key, open_engine
from kneo.store.tables import metadata
from kneo.store.time_limit import StatementTooSlow, limit_statements
from kneo.trust.sealing import NO_KEYS, DataKeys

log = logging.getLogger("kneo.store")

HEAD = "kneo_0025"
"""The newest revision; a test compares it with the folder."""

COMPATIBLE_FROM = "kneo_0007"
"""The newest revision of the oldest version of Kneo that works on the schema of ``HEAD``.

It stays while migrations only add: tables, indexes, columns that may be empty or have a default of the server. A migration
that renames, changes or removes something that version ``kneo_…`` uses sets it to the first revision that does without.
"""

MIGRATIONS = Path(__file__).with_name("migrations")

VERSION_TABLE = "alembic_version"

_versions = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

_compatibility = Table(
    "schema_compatibility",
    MetaData(),
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("compatible_from", String(32), nullable=False),
)

OWN_TABLES = frozenset({VERSION_TABLE, _compatibility.name})
"""Tables about the schema, which backups do not copy."""

LOCK_ATTEMPT_SECONDS = 0.5
"""How long a migration waits for all tables before it gives way: less than the second (``deadlock_timeout``) after which PostgreSQL ends one
of the transactions that wait for each other, which might be a client's."""

LOCK_PAUSE_SECONDS = 0.1

LOCK_SECONDS = 60
"""How long a migration tries."""

_REVISION, _DEVELOPMENT_REVISION = re.compile(r"kneo_\d{4}"), re.compile(r"\d{4}")

PUBLISHED = frozenset({"schema_migrations", "run_queue"})
"""Tables of the published platform's database, whose default file has the same name as Kneo's."""

_migrating = threading.Lock()
"""Held while this process migrates a database: Alembic keeps its connection in module variables."""


class ForeignDatabase(Invalid):
    """The database belongs to another program."""

    default_code = "store_not_ours"

    def __init__(self, content: str, url: URL, *, published: bool = False) -> None:
        if published:
            message = f"{_location(url)} is a database of kneo-serv, which keeps its runs in other tables."
            command = (
                f"export KNEO_SERV_DATABASE_URL={_own_url(url)} && kneo maintenance import {quote(_location(url))}"
            )
            hint = f"Give Kneo a database of its own, and import the history of this one into it: {command}"
        else:
            message = f"The database {_location(url)} is not Kneo's: it has {content}."
            hint = (
                "Name an empty database, or a SQLite file that does not exist yet, in KNEO_SERV_DATABASE_URL, and keep this "
                "one as it is."
            )
        super().__init__(f"{message} Nothing was changed in it.", hint=hint)


def _location(url: URL) -> str:
    """Return the path of a SQLite file, or the address of another database without its password."""
    if url.get_backend_name() == "sqlite":
        return str(Path(url.database or "").absolute())
    shown = {name: value for name, value in url.query.items() if name in {"host", "port", "sslmode"}}
    plain = URL.create("postgresql", url.username, host=url.host, port=url.port, database=url.database, query=shown)
    return plain.render_as_string()


def _own_url(url: URL) -> str:
    """Return a setting of a database next to one of kneo-serv, as a shell reads it."""
    if url.get_backend_name() != "sqlite":
        return "postgresql://USER@HOST/NEW_DATABASE"
    path = Path(_location(url))
    return quote(f"sqlite:///{path.with_name('kneo.sqlite' if path.name != 'kneo.sqlite' else 'kneo-2.sqlite')}")


class Database:
    """A database that is opened at first use, so that checking a spec creates no file.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        find_key: Finds the service key; without a key there are no receipts, and no MACs of records.
        clock: The source of the time.
        data_keys: Seal the bodies of journals.
        migrates: Whether an older schema is migrated.
        checks_macs: Whether records without a valid MAC are refused.
    """

    def __init__(
        self,
        url: str,
        find_key: FindKey = no_key,
        clock: Clock | None = None,
        data_keys: DataKeys = NO_KEYS,
        *,
        migrates: bool = True,
        checks_macs: bool = True,
    ) -> None:
        self.url = url
        self._migrates, self._checks_macs = migrates, checks_macs
        self._find_key, self._data_keys = find_key, data_keys
        self._clock = clock or SystemClock()
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> Store:
        """The open database."""
        with self._lock:
            if self._store is None:
                self._store = open_store(
                    self.url,
                    self._clock,
                    self._find_key,
                    self._data_keys,
                    migrates=self._migrates,
                    checks_macs=self._checks_macs,
                )
            return self._store

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = None


def open_store(
    url: str,
    clock: Clock,
    find_key: FindKey = no_key,
    data_keys: DataKeys = NO_KEYS,
    *,
    migrates: bool = True,
    checks_macs: bool = True,
) -> Store:
    """Open a database, and bring an older schema to the newest revision.

    The schema of a newer version is left as it is where that version says that this one works on it.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        clock: The source of the time.
        find_key: Finds the service key, which signs receipts and authenticates records.
        data_keys: Seal the bodies of journals.
        migrates: Whether an older schema is migrated, and an empty database gets one.
        checks_macs: Whether records without a valid MAC are refused.

    Raises:
        Invalid: ``schema_too_new`` for the schema of a newer version on which this one does not work, ``schema_too_old`` where
            the schema would have to be migrated, ``schema_unsupported`` for that of a development version, ``store_not_ours``
            for another program's database, ``transaction_pooling`` where a proxy pools transactions. Nothing was changed in it.
        Transient: the database cannot be reached.
    """
    if url.startswith("sqlite:///"):
        _check_file(Path(url.removeprefix("sqlite:///")))
    store = Store(open_engine(url), clock, find_key, data_keys, checks_macs=checks_macs)
    try:
        store.check_sessions()
        if current_version(store) != HEAD:
            _use_other_schema(store, migrates=migrates)
    except BaseException:
        store.close()
        raise
    return store


def current_version(store: Store) -> str | None:
    """Read the revision of a database; ``None`` for an empty one."""
    with store.read() as tx:
        return _version(tx.connection)


def _use_other_schema(store: Store, *, migrates: bool) -> None:
    """Migrate a schema, or check that this version works on it as it is."""
    change = plan_migration(store)
    if change.is_empty:
        log.info("the database has the schema of a newer version, which this version works on: %s", change.version)
    elif not migrates:
        found = f"has schema {change.version}" if change.version is not None else "is empty"
        msg = f"The database {found}, and this version of Kneo needs schema {HEAD}. KNEO_SERV_MIGRATE is never."
        raise Invalid(msg, code="schema_too_old", hint="Run kneo maintenance migrate.")
    else:
        migrate(store)


@dataclass(frozen=True, kw_only=True)
class SchemaChange:
    """The change that brings a database to the schema of this version.

    Attributes:
        version: The present revision; ``None`` for an empty database.
        revisions: The revisions to apply, oldest first, with what each changes; none for an empty database, which gets the
            newest schema at once.
        compatible_from: The newest revision of the oldest version of Kneo that works on the database afterwards.
    """

    version: str | None
    revisions: Mapping[str, str]
    compatible_from: str

    @property
    def is_empty(self) -> bool:
        """Whether nothing is changed."""
        return self.version is not None and not self.revisions


def plan_migration(store: Store) -> SchemaChange:
    """Return what ``migrate`` would change.

    Raises:
        Invalid: as in ``open_store``.
    """
    with store.read() as tx:
        version = _version(tx.connection)
        if version is None:
            _check_tables(inspect(tx.connection).get_table_names(), tx.connection.engine.url)
            return SchemaChange(version=None, revisions={}, compatible_from=COMPATIBLE_FROM)
        compatible_from = _check_revision(version, tx.connection)
    return SchemaChange(version=version, revisions=_revisions_after(version), compatible_from=compatible_from)


def _revisions_after(version: str) -> Mapping[str, str]:
    """Return the revisions after one, oldest first, with the first line of each docstring."""
    if version >= HEAD:
        return {}
    directory = importlib.import_module("alembic.script").ScriptDirectory(str(MIGRATIONS))
    scripts = reversed(list(directory.walk_revisions(base=version, head="heads")))
    return {one.revision: str(one.doc) for one in scripts if one.revision != version}


def check_same_schema(store: Store) -> None:
    """Refuse the schema of a newer version, also one that this version works on: copying its rows would lose some.

    Raises:
        Invalid: ``schema_too_new``.
    """
    version = current_version(store)
    if version is not None and version > HEAD:
        raise _too_new(version)


def migrate(store: Store) -> None:
    """Create or migrate the schema in one transaction, which one process and one of its threads executes at a time.

    Raises:
        Invalid: as in ``open_store``.
        Transient: ``store_unavailable``: transactions of others lasted too long.
    """
    with _migrating, store.write() as tx:
        lock_table(tx, "schema")
        version = _version(tx.connection)
        if version is None:
            _check_tables(inspect(tx.connection).get_table_names(), tx.connection.engine.url)
            create_schema(tx)
        elif version < HEAD:
            _check_revision(version, tx.connection)
            _lock_tables(tx)
            # Alembic takes 250 ms to import, which commands on a current database do not pay.
            command = importlib.import_module("alembic.command")
            config = importlib.import_module("alembic.config").Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = tx.connection
            command.upgrade(config, "head")
            tx.connection.execute(delete(_compatibility))
            tx.connection.execute(insert(_compatibility).values(id=1, compatible_from=COMPATIBLE_FROM))
        else:
            _check_revision(version, tx.connection)


def _lock_tables(tx: Tx) -> None:
    """Lock all tables of a PostgreSQL database that is in use until the transaction ends, or give way and try again.

    A migration that locked one table after another would wait for transactions that wait for it.

    Raises:
        Transient: ``store_unavailable``.
    """
    if tx.dialect.name != "postgresql":
        return
    names = [name for name in inspect(tx.connection).get_table_names() if name in metadata.tables]
    lock = text(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
    deadline = monotonic() + LOCK_SECONDS
    while True:
        try:
            with tx.connection.begin_nested(), limit_statements(tx, LOCK_ATTEMPT_SECONDS):
                tx.connection.execute(lock)
        except StatementTooSlow as error:
            if monotonic() > deadline:
                msg = f"Transactions of other programs kept tables locked for {LOCK_SECONDS} s."
                hint = "End them (pg_stat_activity lists them), or wait for the end of a backup; then migrate again."
                raise Transient(msg, code="store_unavailable", hint=hint) from error
            sleep(LOCK_PAUSE_SECONDS)
        else:
            return


def migrate_database(url: str, clock: Clock, *, dry_run: bool = False) -> SchemaChange:
    """Create or migrate the schema of a database, and return what was changed.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        clock: The source of the time.
        dry_run: Whether to return what would be changed instead.

    Raises:
        Invalid, Transient: as in ``open_store``.
    """
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        _check_file(path)
        if dry_run and not path.exists():  # Opening the database would create it.
            return SchemaChange(version=None, revisions={}, compatible_from=COMPATIBLE_FROM)
    with closing(Store(open_engine(url), clock)) as store:
        store.check_sessions()
        change = plan_migration(store)
        if not dry_run and not change.is_empty:
            migrate(store)
    return change


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
    _compatibility.create(tx.connection)
    tx.connection.execute(insert(_compatibility).values(id=1, compatible_from=COMPATIBLE_FROM))
    _versions.create(tx.connection)
    tx.connection.execute(insert(_versions).values(version_num=HEAD))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(_versions.c.version_num)).scalar()


def _check_revision(version: str, connection: Connection) -> str:
    """Check that this version of Kneo works on the schema of a revision, or can migrate it.

    Returns:
        The newest revision of the oldest version that works on it, after the migration where there is one.
    """
    if _DEVELOPMENT_REVISION.fullmatch(version):
        msg = f"The database has schema {version} of a development version of Kneo, which cannot be upgraded."
        raise Invalid(msg, code="schema_unsupported", hint="Use an empty database; it gets the schema of this version.")
    if not _REVISION.fullmatch(version):
        raise ForeignDatabase(f"schema version {version[:40]}", connection.engine.url)
    if version <= HEAD:
        return COMPATIBLE_FROM
    compatible_from: str | None = connection.execute(select(_compatibility.c.compatible_from)).scalar()
    if compatible_from is None or compatible_from > HEAD:
        raise _too_new(version)
    return compatible_from


def _too_new(version: str) -> Invalid:
    msg = f"The database has schema {version}, which is newer than schema {HEAD} of this version of Kneo."
    return Invalid(msg, code="schema_too_new", hint="Run the newer version of Kneo, or restore a backup.")


def _check_tables(names: Collection[str], url: URL) -> None:
    """Refuse a database that has tables and no revision."""
    others = sorted(set(names) - OWN_TABLES)
    if others:
        shown = ", ".join(name[:60] for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise ForeignDatabase(f"the tables {shown}{more}", url, published=set(others) >= PUBLISHED)


def _check_file(path: Path) -> None:
    """Refuse another program's SQLite file before it is opened: opening changes the file's journal mode."""
    url = URL.create("sqlite", database=str(path))
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
        raise ForeignDatabase("something that is not a SQLite database", url) from error
    if VERSION_TABLE not in names:
        _check_tables([name for name in names if not name.startswith("sqlite_")], url)
