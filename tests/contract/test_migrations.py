from __future__ import annotations

import re

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Column, Integer, LargeBinary, MetaData, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from kneo.clock import ManualClock
from kneo.errors import Transient
from kneo.store import migrate
from kneo.store.engine import Store, open_engine
from kneo.store.migrate import HEAD, current_version, open_store
from kneo.store.tables import metadata

WORKED_OUT_AGAIN = {"pending_releases"}
"""Tables whose rows a migration may drop, because the next pass of the controller writes them anew."""


def make_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    return config


REVISIONS = [script.revision for script in ScriptDirectory.from_config(make_config()).walk_revisions()]
OLDER = [revision for revision in reversed(REVISIONS) if revision != HEAD]


def open_at(url: str, clock: ManualClock, revision: str) -> Store:
    """Open a database as an older version of the program left it."""
    store = Store(open_engine(url), clock)
    upgrade(store, revision)
    return store


def upgrade(store: Store, revision: str) -> None:
    config = make_config()
    with store.write() as tx:
        config.attributes["connection"] = tx.connection
        command.upgrade(config, revision)


def differences(store: Store) -> list[object]:
    with store.read() as tx:
        here = tx.connection.dialect.name
        opts = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda item, *_: item.info.get("only", here) == here,
        }
        context = MigrationContext.configure(tx.connection, opts=opts)
        return list(compare_metadata(context, metadata))


def value_for(column: Column[object]) -> object:
    for kind, value in ((JSON, {"k": 1}), (Boolean, True), (Integer, 7), (LargeBinary, b"bytes")):
        if isinstance(column.type, kind):
            return value
    return "x" * min(getattr(column.type, "length", None) or 8, 8)


def fill(store: Store) -> set[str]:
    """Put a row into every table that has none; return the tables' names."""
    found = MetaData()
    with store.write() as tx:
        found.reflect(tx.connection)
        tables = [table for table in found.sorted_tables if table.name != "alembic_version"]
        tables = [table for table in tables if not tx.connection.execute(select(table)).first()]
        for table in tables:
            tx.connection.execute(insert(table).values({column.name: value_for(column) for column in table.columns}))
    return {table.name for table in tables}


def lost(store: Store, filled: set[str]) -> set[str]:
    """Which of the tables that were filled do not have their one row any more."""
    with store.read() as tx:
        counts = {name: tx.connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in filled}
    return {name for name, count in counts.items() if count != 1} - WORKED_OUT_AGAIN


def test_migrations_make_exactly_the_tables(store: Store) -> None:
    assert differences(store) == []


def test_partial_indexes_cover_the_rows_they_are_meant_to(store: Store) -> None:
    with store.read() as tx:
        here = tx.connection.dialect.name
        made = {
            index["name"]: index.get("dialect_options", {}).get(f"{here}_where")
            for table in metadata.sorted_tables
            for index in inspect(tx.connection).get_indexes(table.name)
            if "duplicates_constraint" not in index
        }
    meant = {
        str(index.name): index.info.get("where")
        for table in metadata.sorted_tables
        for index in table.indexes
        if index.info.get("only", here) == here
    }
    assert len([where for where in meant.values() if where]) > 5
    assert {
        name: re.sub("[()]", "", str(where)) if where is not None else None for name, where in made.items()
    } == meant


def test_rows_of_some_tables_live_in_the_tree_of_their_key(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("PostgreSQL has no such tables")
    with store.read() as tx:
        made = tx.connection.execute(text("SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%'")).scalars()
        assert set(made) == {table.name for table in metadata.sorted_tables if table.info.get("one_tree")}


def test_head_names_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(make_config()).get_heads() == [HEAD]


def test_migrations_are_numbered_in_their_order() -> None:
    assert sorted(REVISIONS, reverse=True) == REVISIONS


def test_every_migration_keeps_what_is_there(database_url: str, clock: ManualClock) -> None:
    """One database grows through all versions; at each, every table that is empty gets a row."""
    store = open_at(database_url, clock, OLDER[0])
    filled = fill(store)
    for revision in OLDER[1:]:
        upgrade(store, revision)
        assert lost(store, filled) == set(), revision
        filled |= fill(store)
    assert len(filled) > 10
    store.close()
    newest = open_store(database_url, clock)
    assert current_version(newest) == HEAD
    assert lost(newest, filled) == set()
    assert differences(newest) == []
    newest.close()


def test_the_oldest_database_is_brought_along_at_once(database_url: str, clock: ManualClock) -> None:
    older = open_at(database_url, clock, OLDER[0])
    filled = fill(older)
    older.close()
    store = open_store(database_url, clock)
    assert current_version(store) == HEAD
    assert differences(store) == []
    assert lost(store, filled) == set()
    store.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(database_url: str, clock: ManualClock) -> None:
    older = open_at(database_url, clock, OLDER[0])
    with older.write() as tx:
        before = set(inspect(tx.connection).get_table_names())
        last_new = max(set(metadata.tables) - before)
        tx.connection.execute(text(f"CREATE TABLE {last_new} (in_the_way INTEGER)"))
    with pytest.raises((DBAPIError, Transient), match="already exists"):
        open_store(database_url, clock)
    assert current_version(older) == OLDER[0]
    with older.read() as tx:
        assert set(inspect(tx.connection).get_table_names()) == before | {last_new}
    older.close()
