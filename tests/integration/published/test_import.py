"""``kneo maintenance import``: databases that the published platform made, on both kinds of database."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
import zlib
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest
from kneo_process import Machine
from published_history import FIXTURES, run_import
from sqlalchemy import func, select

from kneo import maintenance
from kneo.clock import isoformat
from kneo.errors import Conflict, Invalid, NotFound
from kneo.extensions.kneo_serv import importer
from kneo.extensions.kneo_serv.import_database import import_published
from kneo.records.run import IMPORTER, RunStatus
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import continue_run
from kneo.settings import from_env
from kneo.store import history, project_metadata, runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.service_key import find_service_key
from kneo.store.tables import audit_events, imported_audit_events, metadata

VERSIONS = ("0.4.0", "1.2.0")

FOUND = {"runs": 13, "checkpoints": 56, "audit_events": 18}


@pytest.fixture(params=VERSIONS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a database that a published version made."""
    return Path(shutil.copy(FIXTURES / f"{request.param}.sqlite", tmp_path / "published.sqlite"))


def rows_of(store: Store) -> Mapping[str, int]:
    with store.read() as tx:
        counts = {
            table.name: tx.connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def change_run(path: Path, found_status: str, /, **values: object) -> str:
    """Change fields of the first run with a status; return its id."""
    with closing(sqlite3.connect(path)) as connection, connection:
        found = "SELECT id, payload FROM runs WHERE status = ? ORDER BY id LIMIT 1"
        run_id, payload = connection.execute(found, [found_status]).fetchone()
        body = json.dumps(json.loads(payload) | values)
        connection.execute("UPDATE runs SET payload = ? WHERE id = ?", [body, run_id])
    return str(run_id)


def test_every_run_comes_with_its_history_and_none_continues(made: Path, store: Store) -> None:
    before = made.read_bytes()

    report = run_import(made, store)

    assert {name: report.imported[name] for name in FOUND} == FOUND
    assert report.imported["tasks"] == 6
    assert (report.refused_count, report.checkpoints_left_out, report.ended_count) == (0, 0, 2)
    with store.read() as tx:
        listed = runs.list_runs(tx, limit=100)
        assert len(listed) == 13
        assert {run.requester for run in listed} == {IMPORTER}
        assert all(run.status.is_final for run in listed)
        assert {run.status for run in listed} == {
            RunStatus.SUCCEEDED,
            RunStatus.FAILED,
            RunStatus.CANCELLED,
            RunStatus.EXPIRED,
        }
        failed = next(run for run in listed if run.status is RunStatus.FAILED)
        steps = [(step.step_id, step.status, step.input_text) for step in history.list_steps(tx, failed.id)]
        assert steps == [("draft", "completed", "7 EUR"), ("fail", "failed", "DRAFT<7 EUR>")]
        assert len(history.list_checkpoints(tx, failed.id)) == failed.checkpoint_count == 4
        assert [event.type for event in history.list_trace(tx, failed.id)] == ["workflow_started"]
        assert runs.list_runnable(tx, 100) == ()
    with pytest.raises(Conflict, match="imported"):
        continue_run(store, ProgramLoader(store), failed.id, actor="ann")
    assert made.read_bytes() == before


def test_the_history_in_postgresql_is_the_same(postgres_url: str, tmp_path: Path) -> None:
    location = postgres_url.replace("+psycopg", "")
    with psycopg.connect(location) as connection:
        connection.execute((FIXTURES / "1.2.0.sql").read_bytes())

    answer = import_published(settings_for(tmp_path), location, actor="ann")

    assert answer["found"] | FOUND == answer["found"]
    assert answer["imported"] | FOUND == answer["imported"]
    assert answer["refused"]["count"] == 0
    assert answer["source"]["kind"] == "postgresql"
    assert import_published(settings_for(tmp_path), location, actor="ann")["present"]["runs"] == 13


def test_decisions_are_kept_and_open_tasks_are_closed(made: Path, store: Store) -> None:
    run_import(made, store)

    with store.read() as tx:
        found = [task for run in runs.list_runs(tx, limit=100) for task in tasks.of_run(tx, run.id, TaskStatus)]
    decided = {task.decision.kind.value: task.decision for task in found if task.decision is not None}
    assert {kind: (one.actor, one.by) for kind, one in decided.items()} == dict.fromkeys(
        ("approved", "rejected", "edited"), ("alice", IMPORTER)
    )
    assert not [task for task in found if task.status in UNRESOLVED]
    assert sorted(task.status for task in found if task.decision is None) == ["cancelled", "cancelled", "expired"]
    assert {task.title for task in found} == {"Is the text fit to print?", "Quick, is it?"}


def test_a_second_import_changes_nothing(made: Path, store: Store) -> None:
    run_import(made, store)
    rows = rows_of(store)

    again = run_import(made, store)

    assert not again.changed
    assert again.present == {"runs": 13, "audit_events": 18}
    assert rows_of(store) == rows


def test_a_dry_run_counts_the_same_and_writes_nothing(made: Path, store: Store) -> None:
    rows = rows_of(store)

    report = run_import(made, store, dry_run=True)

    assert rows_of(store) == rows
    assert report.imported == run_import(made, store).imported


def test_an_import_that_was_killed_continues(made: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "BATCH", 4)
    real, calls = importer.insert_history, []

    def killed(tx: object, past: object) -> bool:
        calls.append(past)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(tx, past)

    monkeypatch.setattr(importer, "insert_history", killed)
    with pytest.raises(KeyboardInterrupt):
        run_import(made, store)
    monkeypatch.setattr(importer, "insert_history", real)

    report = run_import(made, store)

    assert report.present["runs"] == 4  # the batch that was committed, and nothing of the next one
    assert report.imported["runs"] == 9
    assert rows_of(store)["runs"] == 13
    assert rows_of(store)["checkpoints"] == 56


def test_the_audit_log_records_the_import_with_the_digest_of_the_old_log(made: Path, store: Store) -> None:
    report = run_import(made, store)

    with store.read() as tx:
        events = importer.list_imported_events(tx, limit=100)
        found = select(audit_events).where(audit_events.c.event_type == importer.FINISHED)
        [finished] = tx.connection.execute(found).all()
    assert len(events) == 18
    assert {event["actor"] for event in events} == {"alice", "bob", None}
    assert finished.actor == "ann"
    assert json.loads(finished.metadata)["audit_log_digest"] == report.audit_log_digest
    change(made, "UPDATE audit_events SET payload = replace(payload, 'approved', 'rejected')")
    assert run_import(made, store, dry_run=True).audit_log_digest != report.audit_log_digest


def test_a_run_of_this_installation_is_left_as_it_is(made: Path, store: Store) -> None:
    run_id = change_run(made, "failed")
    run_import(made, store)
    with store.write() as tx:
        table = metadata.tables["runs"]
        mine = table.update().where(table.c.id == run_id).values(metadata={}, output_text="mine")
        tx.connection.execute(mine)

    report = run_import(made, store)

    assert [(row["id"], row["reason"]) for row in report.refused] == [
        (run_id, "Another run has this id; it is left as it is.")
    ]
    with store.read() as tx:
        kept = runs.get(tx, run_id)
    assert kept is not None
    assert kept.output_text == "mine"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"status": "asleep"}, "status"),
        ({"created_at": "yesterday"}, "time"),
        ({"id": "run_of_another"}, "id"),
        ({"metadata": json.loads("[" * 900 + "]" * 900)}, "JSON"),
    ],
)
def test_a_run_without_a_place_is_refused_alone(
    tmp_path: Path, store: Store, values: dict[str, object], reason: str
) -> None:
    made = Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite"))
    run_id = change_run(made, "failed", **values)

    report = run_import(made, store)

    [row] = report.refused
    assert row["id"] == run_id
    assert reason in str(row["reason"])
    assert report.imported["runs"] == 12


def test_texts_and_values_of_a_stranger_are_cleaned(tmp_path: Path, store: Store) -> None:
    made = Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite"))
    run_id = change_run(
        made,
        "failed",
        agent_name="a\x1b[31m\u202eb" + "n" * 1000,
        input_text="a\x00b",
        created_at="9999-12-31T00:00:00+00:00",
        visited_steps=[1, None, "step"],
        trace_events=[{"type": 7, "error": "text", "agent_name": ["list"], "metadata": {"tool": {"x": 1}}}, "event"],
        session_id={"a": 1},
    )

    assert run_import(made, store).refused_count == 0

    with store.read() as tx:
        run = runs.get(tx, run_id)
        trace = history.list_trace(tx, run_id)
    assert run is not None
    assert run.agent_name == ("a[31mb" + "n" * 1000)[:198]
    assert run.input_text == "a\ufffdb"
    assert run.created_at == isoformat(store.clock.now())
    assert run.visited_steps == ("step",)
    assert [(event.type, event.data) for event in trace] == [("event", {"error": {"type": "error", "message": "text"}})]


def test_a_checkpoint_that_unpacks_to_too_much_is_left_out(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite"))
    monkeypatch.setattr("kneo.extensions.kneo_serv.conversion.MAX_HISTORY_CHARS", 1_000_000)
    bomb = base64.b64encode(zlib.compress(b'"' + b" " * 2_000_000 + b'"')).decode()
    body = json.dumps({"__kneo_checkpoint_payload__": "zlib+base64+json", "payload": bomb})
    change(made, "UPDATE checkpoints SET payload = ? WHERE type = 'run_failed'", body)

    report = run_import(made, store)

    assert report.checkpoints_left_out == 1
    assert report.imported["checkpoints"] == 55


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO schema_migrations VALUES (5, 'more', '2027-01-01')",
        "UPDATE schema_migrations SET name = 'other' WHERE version = 2",
        "DELETE FROM schema_migrations WHERE version > 1",
        "DROP TABLE checkpoints",
        "CREATE TABLE alembic_version (version_num TEXT)",
    ],
)
def test_another_schema_is_refused_and_nothing_is_written(tmp_path: Path, statement: str) -> None:
    made = Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite"))
    change(made, statement)

    with pytest.raises(Invalid) as caught:
        import_published(settings_for(tmp_path), str(made), actor="ann")

    assert caught.value.code == "import_unsupported"
    assert not (tmp_path / "new.sqlite").exists()


def settings_for(folder: Path) -> maintenance.Settings:
    return from_env({"KNEO_SERV_DATABASE_URL": f"sqlite:///{folder / 'new.sqlite'}"})


def test_a_file_that_is_missing_or_no_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        import_published(settings_for(tmp_path), str(tmp_path / "none.sqlite"), actor="ann")
    (tmp_path / "text.sqlite").write_text("no database, however long it is " * 100)
    with pytest.raises(Invalid) as caught:
        import_published(settings_for(tmp_path), str(tmp_path / "text.sqlite"), actor="ann")
    assert caught.value.code == "import_unreadable"


def test_policies_are_set_where_an_environment_has_none(made: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    assert import_published(settings, str(made), actor="ann", dry_run=True)["imported"]["policies"] == 1
    assert not (tmp_path / "new.sqlite").exists()

    assert import_published(settings, str(made), actor="ann")["imported"]["policies"] == 1
    assert import_published(settings, str(made), actor="ann")["imported"]["policies"] == 0

    find_key = partial(find_service_key, settings)
    with closing(open_store(settings.database_url, maintenance.SystemClock(), find_key)) as store, store.read() as tx:
        policy = project_metadata.find_policy(tx, "prod")
        assert policy is not None
        assert policy.fail_on_warnings
        assert tx.connection.execute(select(func.count()).select_from(imported_audit_events)).scalar_one() == 18


@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_that_finds_the_file_of_kneo_serv_names_the_import_which_then_works(
    version: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "with a space", "")
    del machine.env["KNEO_SERV_DATABASE_URL"]
    old = machine.folder / ".kneo" / "kneo_runs.sqlite"
    old.parent.mkdir()
    shutil.copy(FIXTURES / f"{version}.sqlite", old)
    before = old.read_bytes()
    refused = machine.kneo("runs", "list", expect=1)
    assert f"{old} is a database of kneo-serv" in refused.stderr
    command = refused.stderr.partition("into it: ")[2].strip()
    done = subprocess.run(
        ["sh", "-c", f"{command} && kneo runs list --json"],
        check=False,
        cwd=machine.folder,
        env=machine.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "The import is complete." in done.stdout
    assert json.loads(done.stdout[done.stdout.index("{") :])["total"] == FOUND["runs"]
    assert old.read_bytes() == before
