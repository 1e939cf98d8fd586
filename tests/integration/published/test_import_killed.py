"""An import whose process is killed at a write continues when it is repeated: nothing is doubled, nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from kneo_process import Machine
from published_history import FIXTURES
from sqlalchemy import func, select
from warm import start_python

from kneo.clock import SystemClock
from kneo.extensions.kneo_serv import importer
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import (
    audit_events,
    checkpoints,
    imported_audit_events,
    runs,
    steps,
    tasks,
    trace_events,
)

pytestmark = pytest.mark.e2e

WRITTEN = (runs, steps, checkpoints, trace_events, tasks, imported_audit_events)

STOPPING = """
import sys
from kneo.cli.main import run
from kneo.extensions.kneo_serv import importer

importer.BATCH = 4
name, number, *command = sys.argv[1:]
real, calls = getattr(importer, name), 0

def write(*given, **named):
    global calls
    calls += 1
    done = real(*given, **named)
    if calls == int(number):
        # Written, and not committed.
        print("reached", flush=True)
        sys.stdin.read()
    return done

setattr(importer, name, write)
sys.exit(run(command))
"""
"""The command, which stops in the transaction of a write until the test has killed it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite"))


@pytest.fixture
def machine(migrated_url: str, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", migrated_url)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    with closing(open_store(migrated_url, SystemClock())) as opened:
        yield opened


def kill_at(machine: Machine, source: Path, write: str, number: int) -> None:
    """Kill an import in the transaction of a write."""
    command = [sys.executable, "-c", STOPPING, write, str(number), "maintenance", "import", str(source)]
    with start_python(
        command,
        cwd=machine.folder,
        env=machine.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n", process.communicate(timeout=240)[1]
        finally:
            process.kill()
    assert process.returncode == -9


def keys(store: Store) -> Mapping[str, list[tuple[object, ...]]]:
    """Return the keys of all rows that an import writes."""
    with store.read() as tx:
        return {
            table.name: sorted(tuple(row) for row in tx.connection.execute(select(*table.primary_key.columns)))
            for table in WRITTEN
        }


def finished(store: Store) -> int:
    with store.read() as tx:
        events = select(func.count()).where(audit_events.c.event_type == importer.FINISHED)
        return int(tx.connection.execute(events).scalar_one())


@pytest.mark.parametrize(
    ("write", "number", "committed"),
    [
        ("insert_history", 1, 0),
        ("insert_history", 7, 4),
        ("insert_history", 13, 12),
        ("insert_events", 2, 13),
        ("record_finished", 1, 13),
    ],
)
def test_a_killed_import_is_repeated_without_a_doubled_or_lost_row(
    machine: Machine, store: Store, source: Path, tmp_path: Path, write: str, number: int, committed: int
) -> None:
    whole = Machine(tmp_path / "whole", f"sqlite:///{tmp_path / 'whole.sqlite'}")
    expected = whole.json("maintenance", "import", str(source))["imported"]
    with closing(open_store(whole.env["KNEO_SERV_DATABASE_URL"], SystemClock())) as reference:
        every = keys(reference)

    kill_at(machine, source, write, number)
    assert len(keys(store)["runs"]) == committed
    assert finished(store) == 0

    repeated = machine.json("maintenance", "import", str(source))

    assert (repeated["present"]["runs"], repeated["imported"]["runs"]) == (committed, 13 - committed)
    assert keys(store) == every
    assert {table.name: len(every[table.name]) for table in (runs, steps, checkpoints, trace_events, tasks)} == {
        name: expected[name] for name in ("runs", "steps", "checkpoints", "trace_events", "tasks")
    }
    assert finished(store) == 1
    again = machine.json("maintenance", "import", str(source))
    assert set(again["imported"].values()) == {0}
    assert (keys(store), finished(store)) == (every, 1)


def test_two_imports_at_once_write_every_row_once(machine: Machine, store: Store, source: Path) -> None:
    commands = [[sys.executable, "-m", "kneo.cli.main", "maintenance", "import", str(source), "--json"]] * 2
    processes = [
        start_python(
            command, cwd=machine.folder, env=machine.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    ended = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert {table: len(rows) for table, rows in keys(store).items() if table in {"runs", "imported_audit_events"}} == {
        "runs": 13,
        "imported_audit_events": 18,
    }
    assert finished(store) >= 1
