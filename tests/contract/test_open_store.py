from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from processes import at_once, run_pythons
from sqlalchemy import create_engine, inspect, make_url, text

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.store.engine import Store
from kneo.store.migrate import COMPATIBLE_FROM, HEAD, OWN_TABLES, current_version, migrate_database, open_store
from kneo.store.tables import metadata

CLOCK = ManualClock(datetime(2026, 1, 31, tzinfo=UTC))

IMPORTS = """
import alembic.command
from kneo.clock import SystemClock
from kneo.store.migrate import current_version, open_store
"""

OPEN = """
store = open_store(sys.argv[1], SystemClock())
print(current_version(store))
store.close()
"""


def test_an_empty_database_gets_every_table(database_url: str) -> None:
    store = open_store(database_url, CLOCK)
    with store.read() as tx:
        assert set(inspect(tx.connection).get_table_names()) == {*metadata.tables, *OWN_TABLES}
    assert current_version(store) == HEAD
    store.close()


def test_opening_again_changes_nothing(database_url: str) -> None:
    open_store(database_url, CLOCK).close()
    store = open_store(database_url, CLOCK)
    assert current_version(store) == HEAD
    store.close()


def test_processes_that_meet_an_empty_database_together_all_open_it(database_url: str) -> None:
    assert run_pythons(IMPORTS, OPEN, [[database_url]] * 3) == [HEAD] * 3


def test_threads_that_meet_an_empty_database_together_all_open_it(database_url: str) -> None:
    def opened(_: int) -> str | None:
        store = open_store(database_url, CLOCK)
        try:
            return current_version(store)
        finally:
            store.close()

    assert at_once(12, opened) == [HEAD] * 12


OPEN_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
def opened(number):
    store = open_store(sys.argv[1], SystemClock())
    try:
        return current_version(store)
    finally:
        store.close()
with ThreadPoolExecutor(6) as pool:
    print(*set(pool.map(opened, range(6))))
"""


def test_threads_of_several_processes_that_meet_an_empty_database_together_all_open_it(database_url: str) -> None:
    assert run_pythons(IMPORTS, OPEN_IN_THREADS, [[database_url]] * 3) == [HEAD] * 3


def test_threads_that_open_several_databases_migrate_each(tmp_path: Path) -> None:
    def opened(number: int) -> str | None:
        store = open_store(f"sqlite:///{tmp_path / str(number % 3)}.sqlite", CLOCK)
        try:
            return current_version(store)
        finally:
            store.close()

    assert at_once(9, opened) == [HEAD] * 9


PUBLISHED = ("schema_migrations", "runs", "checkpoints", "run_queue", "audit_events", "project_metadata")


def raw(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("published", [True, False])
def test_a_database_that_is_not_ours_is_named_and_left_alone(database_url: str, *, published: bool) -> None:
    if database_url.startswith("postgresql"):
        database_url += ("&" if "?" in database_url else "?") + "application_name=secret"
    names = PUBLISHED if published else ("audit_events", "customers")
    raw(database_url, *(f"CREATE TABLE {name} (id integer)" for name in names))
    file = Path(database_url.removeprefix("sqlite:///"))
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(Invalid) as refused:
        open_store(database_url, CLOCK)
    assert refused.value.code == "store_not_ours"
    url = make_url(database_url)
    assert str(url.database) in refused.value.message
    assert "secret" not in str(refused.value)
    if published:
        assert "is a database of kneo-serv" in refused.value.message
        assert "kneo maintenance import " in str(refused.value.hint)
    else:
        assert "audit_events, customers" in refused.value.message
        assert "import" not in str(refused.value.hint)
    assert "KNEO_SERV_DATABASE_URL" in str(refused.value.hint)
    if before is not None:
        assert file.read_bytes() == before
        assert [item.name for item in file.parent.iterdir()] == [file.name]


def test_the_versions_of_another_program_are_not_ours(database_url: str) -> None:
    raw(
        database_url,
        "CREATE TABLE alembic_version (version_num varchar(32))",
        "INSERT INTO alembic_version VALUES ('ae1027a6acf')",
        "CREATE TABLE customers (id integer)",
    )
    with pytest.raises(Invalid) as refused:
        open_store(database_url, CLOCK)
    assert refused.value.code == "store_not_ours"


def test_a_file_that_is_no_database_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 500)
    with pytest.raises(Invalid) as refused:
        open_store(f"sqlite:///{path}", CLOCK)
    assert refused.value.code == "store_not_ours"
    assert path.read_text() == "Dear diary, " * 500


def test_an_empty_file_becomes_ours(tmp_path: Path) -> None:
    (tmp_path / "kneo.sqlite").touch()
    open_store(f"sqlite:///{tmp_path / 'kneo.sqlite'}", CLOCK).close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store, migrated_url: str) -> None:
    with store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_9999'"))
        tx.connection.execute(text("UPDATE schema_compatibility SET compatible_from = 'kneo_9998'"))
    with pytest.raises(Invalid) as refused:
        open_store(migrated_url, CLOCK)
    assert refused.value.code == "schema_too_new"
    assert "kneo_9999" in refused.value.message
    assert refused.value.hint
    assert current_version(store) == "kneo_9999"


def test_a_server_that_is_not_there_is_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(Transient) as refused:
        open_store(f"postgresql+psycopg://postgres@/none?host={tmp_path}", CLOCK)
    assert refused.value.code == "store_unavailable"


def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "kneo.sqlite"
    store = open_store(f"sqlite:///{path}", CLOCK)
    with store.write() as tx:
        tx.connection.execute(text("CREATE TABLE t (x)"))
        beside = list(path.parent.iterdir())
        assert {stat.S_IMODE(file.stat().st_mode) for file in beside} == {0o600}, beside
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()


def test_a_connection_that_is_returned_after_the_store_was_closed_is_closed(store: Store) -> None:
    if store.is_sqlite:
        pytest.skip("a file's connections are closed when they are returned")
    with store.engine.connect() as connection:
        driver = connection.connection.driver_connection
        store.close()
    assert driver is not None
    assert driver.closed


def test_a_process_that_does_not_migrate_refuses_an_older_schema_and_an_empty_database(database_url: str) -> None:
    with pytest.raises(Invalid, match="is empty") as refused:
        open_store(database_url, CLOCK, migrates=False)
    assert refused.value.code == "schema_too_old"
    assert refused.value.hint == "Run kneo maintenance migrate."
    change = migrate_database(database_url, CLOCK)
    assert (change.version, change.compatible_from) == (None, COMPATIBLE_FROM)
    store = open_store(database_url, CLOCK, migrates=False)
    with store.write() as tx:
        tx.connection.execute(text("DROP TABLE schema_compatibility"))
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_0004'"))
    store.close()
    with pytest.raises(Invalid, match="has schema kneo_0004") as refused:
        open_store(database_url, CLOCK, migrates=False)
    assert refused.value.code == "schema_too_old"


def test_a_dry_run_changes_nothing(database_url: str, tmp_path: Path) -> None:
    assert migrate_database(database_url, CLOCK, dry_run=True).version is None
    assert not list(tmp_path.glob("kneo.sqlite*"))
    with pytest.raises(Invalid, match="is empty"):
        open_store(database_url, CLOCK, migrates=False)
