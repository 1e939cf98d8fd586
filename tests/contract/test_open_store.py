from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from processes import run_pythons
from sqlalchemy import inspect, text

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.store.engine import Store
from kneo.store.migrate import HEAD, current_version, open_store
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
        assert set(inspect(tx.connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    assert current_version(store) == HEAD
    store.close()


def test_opening_again_changes_nothing(database_url: str) -> None:
    open_store(database_url, CLOCK).close()
    store = open_store(database_url, CLOCK)
    assert current_version(store) == HEAD
    store.close()


def test_processes_that_meet_an_empty_database_together_all_open_it(database_url: str) -> None:
    assert run_pythons(IMPORTS, OPEN, [[database_url]] * 3) == [HEAD] * 3


def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store, migrated_url: str) -> None:
    with store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Invalid) as refused:
        open_store(migrated_url, CLOCK)
    assert refused.value.code == "schema_too_new"
    assert "9999" in refused.value.message
    assert refused.value.hint
    assert current_version(store) == "9999"


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
