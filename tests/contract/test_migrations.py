from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from kneo_process import eventually
from sqlalchemy import JSON, Boolean, Column, Integer, LargeBinary, MetaData, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.store import append_only, audit, backup, migrate, outbox
from kneo.store.engine import Store
from kneo.store.migrate import HEAD, current_version, open_store
from kneo.store.tables import idempotency_keys, metadata

LATER = "kneo_9999"
"""A revision after the newest one, which exists in tests only."""

LATER_REVISION = f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{LATER}", "{HEAD}"


def upgrade() -> None:
    op.add_column("runs", sa.Column("cost", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("specs") as batch:
        batch.alter_column("created_at", new_column_name="stored_at")
    op.create_table("budgets", sa.Column("name", sa.String(40), primary_key=True))
    op.create_index("ix_runs_cost", "runs", ["cost"])
"""


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Installs a version of Kneo with one more migration; returns the migration's file."""

    def install() -> Path:
        folder = Path(shutil.copytree(migrate.MIGRATIONS, tmp_path / "migrations"))
        revision = folder / "versions" / f"{LATER}_later.py"
        revision.write_text(LATER_REVISION)
        monkeypatch.setattr(migrate, "MIGRATIONS", folder)
        monkeypatch.setattr(migrate, "HEAD", LATER)
        monkeypatch.setattr(migrate, "COMPATIBLE_FROM", LATER)
        return revision

    return install


def differences(store: Store) -> list[object]:
    with store.read() as tx:
        here = tx.connection.dialect.name
        opts = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda item, name, *_: (
                item.info.get("only", here) == here and name not in migrate.OWN_TABLES
            ),
        }
        context = MigrationContext.configure(tx.connection, opts=opts)
        return list(compare_metadata(context, metadata))


def value_for(column: Column[object]) -> object:
    for kind, value in ((JSON, {"k": 1}), (Boolean, True), (Integer, 7), (LargeBinary, b"bytes")):
        if isinstance(column.type, kind):
            return value
    return "x" * min(getattr(column.type, "length", None) or 8, 8)


def fill(store: Store) -> set[str]:
    """Insert a row into every table; return the tables' names."""
    found = MetaData()
    with store.write() as tx:
        found.reflect(tx.connection)
        tables = [table for table in found.sorted_tables if table.name not in migrate.OWN_TABLES]
        for table in tables:
            tx.connection.execute(insert(table).values({column.name: value_for(column) for column in table.columns}))
    return {table.name for table in tables}


def missing(store: Store, filled: set[str]) -> set[str]:
    """Return the filled tables that no longer have exactly their one row."""
    with store.read() as tx:
        counts = {name: tx.connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in filled}
    return {name for name, count in counts.items() if count != 1}


def columns(store: Store, table: str) -> set[str]:
    with store.read() as tx:
        return {column["name"] for column in inspect(tx.connection).get_columns(table)}


def test_a_new_database_has_exactly_the_tables(store: Store) -> None:
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
        name: re.sub("[()]|::text", "", str(where)) if where is not None else None for name, where in made.items()
    } == meant


def test_rows_of_some_tables_live_in_the_tree_of_their_key(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("PostgreSQL has no such tables")
    with store.read() as tx:
        made = tx.connection.execute(text("SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%'")).scalars()
        assert set(made) == {table.name for table in metadata.sorted_tables if table.info.get("without_rowid")}


def test_head_names_the_newest_migration_and_revisions_are_numbered_in_their_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert scripts.get_heads() == [HEAD]
    assert revisions == sorted(revisions, reverse=True)


def test_the_first_release_migrates_to_exactly_the_newest_tables(store: Store) -> None:
    added = [
        "agent_sessions",
        "attestations",
        "browser_sessions",
        "canaries",
        "canary_runs",
        "environment_files",
        "grant_uses",
        "grants",
        "imported_audit_events",
        "oidc_groups",
        "oidc_people",
        "oidc_sign_ins",
        "oidc_used_states",
        "pending_plans",
        "push_subscriptions",
        "schema_compatibility",
        "session_messages",
        "session_summaries",
        "sign_in_links",
    ]
    indexes = [
        "audit_events_actor_id",
        "audit_events_environment_id",
        "idempotency_keys_created_at",
        "outbox_continuation_id",
        "outbox_run_id",
        "runs_bundle_updated_at",
        "runs_environment_created_at",
        "runs_failed",
        "runs_requester",
        "runs_running",
        "runs_spec_digest",
        "runs_suspicion",
        "runs_workflow_name_updated_at",
    ]
    with store.write() as tx:
        outbox.insert(tx, [outbox.Letter(key="k", channel="c", payload={"run_id": "run_1"})])
        for table in added:
            tx.connection.execute(text(f"DROP TABLE {table}"))
        for index in indexes:
            tx.connection.execute(text(f"DROP INDEX ix_{index}"))
        columns = [
            ("approvals", "overruled_by"),
            ("environments", "policy_approved"),
            ("outbox", "continuation_id"),
            ("outbox", "run_id"),
            ("pending_releases", "outdated_approvals"),
            ("runs", "suspicion"),
        ]
        for table, column in columns:
            tx.connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for table in metadata.sorted_tables:
            if "mac" in table.columns and table.name not in added:
                tx.connection.execute(text(f"ALTER TABLE {table.name} DROP COLUMN mac"))
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_0001'"))
    migrate.migrate(store)
    assert current_version(store) == HEAD
    assert differences(store) == []
    with store.read() as tx:
        assert tx.connection.execute(text("SELECT run_id, continuation_id FROM outbox")).all() == [("run_1", None)]


def test_a_later_version_migrates_a_database_and_keeps_every_row(
    migrated_url: str, clock: ManualClock, later: Callable[[], Path]
) -> None:
    with closing(open_store(migrated_url, clock)) as older:
        filled = fill(older)
    later()
    with closing(open_store(migrated_url, clock)) as newer:
        assert current_version(newer) == LATER
        assert missing(newer, filled) == set()
        assert "cost" in columns(newer, "runs")
        assert "stored_at" in columns(newer, "specs")
        with newer.read() as tx:
            assert append_only.find_problem(tx) is None
    with closing(open_store(migrated_url, clock)) as again:
        assert missing(again, filled) == set()


def test_an_earlier_version_refuses_a_migrated_database_and_leaves_it_alone(
    migrated_url: str, clock: ManualClock, later: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    open_store(migrated_url, clock).close()
    monkeypatch.setattr(migrate, "HEAD", HEAD)
    with pytest.raises(Invalid) as refused:
        open_store(migrated_url, clock)
    assert refused.value.code == "schema_too_new"
    assert LATER in refused.value.message
    assert HEAD in refused.value.message
    assert "restore a backup" in str(refused.value.hint)
    monkeypatch.setattr(migrate, "HEAD", LATER)
    with closing(open_store(migrated_url, clock)) as store:
        assert current_version(store) == LATER


def test_an_earlier_version_opens_a_database_to_which_a_later_one_only_added(
    migrated_url: str, clock: ManualClock, later: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    later()
    monkeypatch.setattr(migrate, "COMPATIBLE_FROM", HEAD)
    with closing(open_store(migrated_url, clock)) as newer:
        filled = fill(newer)
    monkeypatch.setattr(migrate, "HEAD", HEAD)
    with closing(open_store(migrated_url, clock, migrates=False)) as older:
        assert current_version(older) == LATER
        assert missing(older, filled) == set()
        with pytest.raises(Invalid) as refused:
            backup.back_up(older, tmp_path / "incomplete.sqlite")
        assert refused.value.code == "schema_too_new"
        assert not (tmp_path / "incomplete.sqlite").exists()
    change = migrate.migrate_database(migrated_url, clock)
    assert (change.version, change.is_empty, change.compatible_from) == (LATER, True, HEAD)


def test_tokens_of_links_that_earlier_versions_stored_are_deleted_and_their_keys_stay(
    store: Store, tmp_path: Path
) -> None:
    row = {
        "principal": "ann",
        "request_digest": "sha256:0",
        "status": 200,
        "attempt": "req_1",
        "created_at": store.clock.now().isoformat(),
    }
    stored = {"create_link": {"path": "/h/" + "T" * 4_000}, "runs:create": {"run_id": "run_1"}}
    with store.write() as tx:
        for scope, response in stored.items():
            tx.connection.execute(insert(idempotency_keys).values(**row, scope=scope, key=scope, response=response))
    with store.write() as tx:
        tx.connection.execute(text("DROP INDEX ix_runs_suspicion"))
        for name in ("runs_running", "runs_environment_created_at"):
            tx.connection.execute(text(f"DROP INDEX ix_{name}"))
        tx.connection.execute(text("ALTER TABLE runs DROP COLUMN suspicion"))
        for table in ("grant_uses", "grants"):
            tx.connection.execute(text(f"DROP TABLE {table}"))
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_0016'"))
        for table in ("attestations", "canaries", "canary_runs"):
            tx.connection.execute(text(f"DROP TABLE {table}"))
    migrate.migrate(store)
    with store.read() as tx:
        columns = idempotency_keys.c
        rows = tx.connection.execute(select(columns.scope, columns.status, columns.response, columns.attempt)).all()
    assert sorted(rows) == [("create_link", None, None, "req_1"), ("runs:create", 200, {"run_id": "run_1"}, "req_1")]
    backup.back_up(store, tmp_path / "later.sqlite")
    assert b"TTTT" not in (tmp_path / "later.sqlite").read_bytes()


def test_what_is_to_be_migrated_is_listed_oldest_first(store: Store) -> None:
    with store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_0002'"))
    change = migrate.plan_migration(store)
    numbers = {path.name[:9] for path in (migrate.MIGRATIONS / "versions").glob("kneo_*.py")}
    assert list(change.revisions) == sorted(numbers - {"kneo_0001", "kneo_0002"})
    assert change.revisions["kneo_0004"] == "The plans of pending changes."
    assert change.compatible_from == migrate.COMPATIBLE_FROM
    assert current_version(store) == "kneo_0002"


ADDITIVE = {"create_table", "create_index", "drop_index", "add_column", "get_bind", "get_context", "batch_alter_table"}
"""Operations of Alembic after which an earlier version still works."""


def operations(revision: Path) -> set[str]:
    """Return what a migration does with ``op`` or a batch of it, and columns that must have a value and have no default."""
    tree = ast.parse(revision.read_text())
    upgrade = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade")
    calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    names = {call.func.attr for call in calls if isinstance(call.func.value, ast.Name) and call.func.value.id != "sa"}
    for call in calls:
        if call.func.attr == "add_column":
            text_of = ast.unparse(call)
            if "nullable=False" in text_of and "server_default" not in text_of:
                names.add("add_column without a default")
    return names


DELETES_VALUES = {"kneo_0017_shown_once.py": {"execute"}}
"""Migrations that change rows, in a way that earlier versions know: an idempotency key without a response."""


def test_migrations_that_earlier_versions_survive_only_add() -> None:
    newer = [
        path
        for path in (migrate.MIGRATIONS / "versions").glob("kneo_*.py")
        if path.name[: len(HEAD)] > migrate.COMPATIBLE_FROM
    ]
    others = {path.name: operations(path) - ADDITIVE for path in newer}
    assert {name: found for name, found in others.items() if found} == DELETES_VALUES


def test_an_operation_that_breaks_earlier_versions_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "kneo_9999.py"
    path.write_text(LATER_REVISION.replace('server_default="0"', "").replace("nullable=False, )", "nullable=False)"))
    assert operations(path) - ADDITIVE == {"alter_column", "add_column without a default"}


def test_a_backup_of_an_earlier_version_restores_that_version_or_upgrades(
    store: Store, tmp_path: Path, clock: ManualClock, later: Callable[[], Path]
) -> None:
    with store.write() as tx:
        audit.record(tx, "run.created", actor="ann")
    audit.seal(store)
    copy, target = tmp_path / "before-upgrade.sqlite", tmp_path / "restored.sqlite"
    backup.back_up(store, copy)
    assert backup.restore_file(copy, target, clock).size == 1
    with closing(open_store(f"sqlite:///{target}", clock)) as restored:
        assert current_version(restored) == HEAD
    later()
    with closing(open_store(f"sqlite:///{target}", clock)) as upgraded:
        assert current_version(upgraded) == LATER
        assert audit.verify(upgraded, waiting=None).valid


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    migrated_url: str, clock: ManualClock, later: Callable[[], Path]
) -> None:
    with closing(open_store(migrated_url, clock)) as older:
        filled = fill(older)
        with older.write() as tx:
            tx.connection.execute(text("CREATE TABLE budgets (in_the_way INTEGER)"))
        before = columns(older, "runs")
        later()
        with pytest.raises((DBAPIError, Transient), match="already exists"):
            open_store(migrated_url, clock)
        assert current_version(older) == HEAD
        assert columns(older, "runs") == before
        assert missing(older, filled) == set()


def test_a_migration_gives_way_to_a_transaction_that_needs_its_tables(store: Store, later: Callable[[], Path]) -> None:
    """Of two that wait for each other, PostgreSQL would end either: a request would fail, or the migration."""
    if store.is_sqlite:
        pytest.skip("SQLite has one writer.")
    later()
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'specs'::regclass")
    with ThreadPoolExecutor(1) as pool, store.engine.connect() as observer:
        observer.execution_options(isolation_level="AUTOCOMMIT")
        with store.read() as tx:
            tx.connection.execute(text("SELECT * FROM specs"))
            migration = pool.submit(migrate.migrate, store)
            eventually(lambda: observer.execute(waits).scalar())
            tx.connection.execute(text("SELECT * FROM runs"))
        migration.result(timeout=30)
        assert current_version(store) == LATER


def test_a_migration_of_tables_that_stay_locked_ends(
    store: Store, later: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.is_sqlite:
        pytest.skip("SQLite has one writer.")
    later()
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0)
    with ThreadPoolExecutor(1) as pool, store.read() as tx:
        tx.connection.execute(text("SELECT * FROM specs"))
        with pytest.raises(Transient, match="kept tables locked"):
            pool.submit(migrate.migrate, store).result(timeout=30)
    assert current_version(store) == HEAD


def test_a_database_of_a_development_version_is_refused_and_left_alone(store: Store, migrated_url: str) -> None:
    with store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = '0022'"))
    with pytest.raises(Invalid) as refused:
        open_store(migrated_url, store.clock)
    assert refused.value.code == "schema_unsupported"
    assert "0022" in refused.value.message
    assert refused.value.hint
    assert current_version(store) == "0022"
