"""``kneo maintenance adopt``: on both databases, twice, with a worker that runs, killed half way, and after a rolling upgrade."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from builders import build_run
from installation_key import SERVICE_KEY, find_key
from kneo_process import Machine, eventually
from sqlalchemy import func, select
from warm import start_python

from kneo.clock import SystemClock
from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.runtime.engine.wait import find_run
from kneo.store import audit, runs
from kneo.store.adoption import BATCH
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import runs as rows

COUNT = 2 * BATCH + 100


@pytest.fixture
def machine(migrated_url: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine whose database has the records of an earlier version: without codes."""
    with closing(open_store(migrated_url, SystemClock())) as store, store.write() as tx:
        for number in range(COUNT):
            runs.insert_run(tx, build_run(id=f"run_{number:028}", status=RunStatus.SUCCEEDED))
    made = Machine(tmp_path / "machine", migrated_url, KNEO_SERV_SERVICE_KEY=SERVICE_KEY.dump().decode())
    yield made
    made.stop()


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    with closing(open_store(migrated_url, SystemClock(), find_key)) as opened:
        yield opened


def authenticated(store: Store) -> int:
    with store.read() as tx:
        query = select(func.count()).select_from(rows).where(rows.c.mac.is_not(None))
        count: int = tx.connection.execute(query).scalar_one()
    return count


def adopted(machine: Machine, *options: str) -> int:
    answer = machine.json("maintenance", "adopt", *options)
    tables = answer["tables"]
    assert isinstance(tables, dict)
    return int(tables["runs"]["adopted"])


def test_records_are_adopted_once_and_never_without_a_command(machine: Machine, store: Store) -> None:
    first = "run_" + "0" * 28
    with pytest.raises(KneoError) as refused:
        find_run(store, first)
    assert refused.value.code == "record_unauthenticated"
    assert adopted(machine, "--dry-run") == COUNT
    assert authenticated(store) == 0
    assert (adopted(machine), adopted(machine)) == (COUNT, 0)
    assert find_run(store, first) is not None
    with store.read() as tx:
        counts = [item.event.metadata["adopted"] for item in audit.events(tx, event_type=audit.ADOPTED)]
    assert sorted(map(str, counts)) == [str({"runs": COUNT}), "{}"]


def test_without_a_key_nothing_is_adopted(machine: Machine, store: Store) -> None:
    if not store.is_sqlite:
        machine.env["KNEO_SERV_SERVICE_KEY"] = ""
        refused = machine.kneo("maintenance", "adopt", expect=1)
        assert "KNEO_SERV_SERVICE_KEY" in refused.stderr
        assert authenticated(store) == 0


def test_an_adoption_that_was_killed_is_continued(machine: Machine, store: Store) -> None:
    command = [sys.executable, "-m", "kneo.cli.main", "maintenance", "adopt"]
    with start_python(command, cwd=machine.folder, env=machine.env) as process:
        eventually(lambda: authenticated(store) > 0)
        process.kill()
    done = authenticated(store)
    assert done % BATCH == 0 or done == COUNT
    assert adopted(machine) == COUNT - done
    assert authenticated(store) == COUNT


def test_a_worker_executes_what_is_adopted_while_it_runs(machine: Machine, store: Store) -> None:
    spec = machine.folder / "spec.yaml"
    spec.write_text(
        "agent: {name: root, model: {provider: dummy, name: dummy}}\n"
        "workflow: {type: sequential, steps: [{id: ask, kind: human, ref: ann}]}\n"
        'components: {humans: {ann: {description: "Fine?"}}}\n'
    )
    paused = machine.json("run", "spec.yaml", "--input", "x")
    with store.write() as tx:
        tx.connection.execute(rows.update().where(rows.c.id == paused["run_id"]).values(mac=None))
    machine.start("worker", answers=False)
    task = str(paused["continuation_id"])
    with pytest.raises(KneoError) as refused:
        find_run(store, str(paused["run_id"]))
    assert "kneo maintenance adopt" in str(refused.value.hint)
    assert adopted(machine) == COUNT + 1
    machine.kneo("task", "decide", task, "--approve")

    def status() -> bool:
        with store.read() as tx:
            run = runs.get(tx, str(paused["run_id"]))
        return run is not None and run.status is RunStatus.SUCCEEDED

    eventually(status)


def test_while_codes_are_written_only_records_of_both_versions_are_read(machine: Machine, migrated_url: str) -> None:
    with closing(open_store(migrated_url, SystemClock(), find_key, checks_macs=False)) as mixed:
        assert find_run(mixed, "run_" + "0" * 28) is not None
        mixed.transact(lambda tx: runs.insert_run(tx, build_run(id="run_new", status=RunStatus.SUCCEEDED)))
    with closing(open_store(migrated_url, SystemClock())) as earlier, earlier.write() as tx:
        # What an earlier version changes keeps the code of what it was.
        tx.connection.execute(rows.update().where(rows.c.id == "run_new").values(output_text="changed"))
    assert adopted(machine) == COUNT
    with closing(open_store(migrated_url, SystemClock(), find_key)) as checking:
        with pytest.raises(KneoError) as refused:
            find_run(checking, "run_new")
        assert refused.value.code == "record_tampered"
        assert adopted(machine, "--changed") == 1
        assert find_run(checking, "run_new") is not None
