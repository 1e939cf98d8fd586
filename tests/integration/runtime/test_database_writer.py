"""A person who can write to the database, at the rows of runs and of their human tasks: nothing of theirs is executed or decided.

The person has a database client, knows the schema and every value in it, and does not have the service key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, step
from installation_key import find_key
from sqlalchemy import insert, select, update

from kneo.clock import ManualClock, SystemClock, isoformat
from kneo.digest import canonical_json, digest_of
from kneo.errors import KneoError
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, cancel_run, continue_run, fork
from kneo.runtime.engine.wait import find_run
from kneo.store import audit, runs
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import metadata
from kneo.tasks.inbox import find
from kneo.tasks.lifecycle import process_due

SOURCE = """
def pay(text):
    note(f"paid {text}")
    return f"paid {text}"

def steal(text):
    note(f"stole {text}")
    return f"stole {text}"

def broken(text):
    note("broken")
    raise ValueError("broken")
"""

GATE = {"id": "ask", "kind": "human", "ref": "ann"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(SystemClock().now())


@pytest.fixture
def engine(migrated_url: str, clock: ManualClock, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, clock, find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


def write(store: Store, table: str, where: dict[str, object], **values: object) -> None:
    rows = metadata.tables[table]
    with store.write() as tx:
        condition = [rows.c[name] == value for name, value in where.items()]
        assert tx.connection.execute(update(rows).where(*condition).values(**values)).rowcount


def row(store: Store, table: str, **where: object) -> dict[str, Any]:
    rows = metadata.tables[table]
    with store.read() as tx:
        condition = [rows.c[name] == value for name, value in where.items()]
        return dict(tx.connection.execute(select(rows).where(*condition)).mappings().one())


def code(work: Callable[[], object]) -> str:
    with pytest.raises(KneoError) as caught:
        work()
    return caught.value.code


def other_spec(engine: Engine, run: Run) -> bytes:
    """Store the spec of a run with another function behind the gate; return its bytes."""
    body: bytes = row(engine.store, "specs", digest=run.spec_digest)["body"]
    other = canonical_json(json.loads(body.replace(f"{engine.module}.pay".encode(), f"{engine.module}.steal".encode())))
    assert other != body
    with engine.store.write() as tx:
        tx.connection.execute(
            insert(metadata.tables["specs"]).values(digest=digest_of(other), body=other, created_at=tx.at)
        )
    return other


# ---- what a waiting run executes -------------------------------------------------------------------------------------


def another_spec(engine: Engine, run: Run) -> dict[str, object]:
    return {"spec_digest": digest_of(other_spec(engine, run))}


def another_spec_of_a_release(engine: Engine, run: Run) -> dict[str, object]:
    return {**another_spec(engine, run), "bundle_digest": None}


def a_state_behind_the_gate(engine: Engine, run: Run) -> dict[str, object]:
    done = engine.run([step("pay")], "a run without a gate")
    early = row(engine.store, "checkpoints", run_id=done.id, sequence=1)["state"]
    state = json.loads(early)["state"]
    return {"state": {**state, "input": {"text": "everything"}}}


def another_input(engine: Engine, run: Run) -> dict[str, object]:
    text = json.dumps(run.state).replace('"100"', '"100000"')
    return {"state": json.loads(text), "input_text": "100000"}


def other_metadata(_engine: Engine, run: Run) -> dict[str, object]:
    return {"metadata": {**run.metadata, "replay": {"source": run.id, "answers": {"ask": "approved"}, "ask": []}}}


def another_requester(_engine: Engine, _run: Run) -> dict[str, object]:
    return {"requester": "eve"}


def the_row_of_another_run(engine: Engine, run: Run) -> dict[str, object]:
    """With its code, which is bound to the other run's id."""
    other = engine.run([step("pay"), GATE, step("steal")], "100")
    found = row(engine.store, "runs", id=other.id)
    return {name: found[name] for name in ("spec_digest", "state", "input_text", "metadata", "mac")}


@pytest.mark.parametrize(
    "attack",
    [
        another_spec,
        another_spec_of_a_release,
        a_state_behind_the_gate,
        another_input,
        other_metadata,
        another_requester,
        the_row_of_another_run,
    ],
)
def test_a_waiting_run_that_was_changed_ends_and_executes_nothing(
    engine: Engine, attack: Callable[[Engine, Run], dict[str, object]]
) -> None:
    run = engine.run([GATE, step("pay")], "100")
    (task,) = engine.open(run)
    notes = engine.notes()
    changes = attack(engine, run)
    notes = engine.notes() if attack in {a_state_behind_the_gate, the_row_of_another_run} else notes
    write(engine.store, "runs", {"id": run.id}, **changes)
    assert code(lambda: find_run(engine.store, run.id)) == "record_tampered"
    engine.answer(task, "approved")
    engine.drive_unread(run)
    with engine.store.read() as tx:
        now = runs.get(tx, run.id)
        ended = audit.events(tx, event_type="run.failed", run_id=run.id)
    assert now is not None
    assert (now.status, now.error and now.error.type) == (RunStatus.FAILED, "record_tampered")
    assert [item.event.metadata for item in ended] == [{"error_type": "record_tampered"}]
    assert engine.notes() == notes
    assert code(lambda: continue_run(engine.store, ProgramLoader(engine.store), run.id, actor="ann")) in {
        "record_unauthenticated",
        "record_tampered",
    }


@pytest.mark.parametrize("mac", [None, b"", b"\x01other" + b"0" * 32])
def test_a_run_without_its_code_is_left_as_it_is(engine: Engine, mac: bytes | None) -> None:
    run = engine.run([GATE, step("pay")], "100")
    whole = row(engine.store, "runs", id=run.id)["mac"]
    (task,) = engine.open(run)
    engine.answer(task, "approved")
    write(engine.store, "runs", {"id": run.id}, mac=mac)
    assert code(lambda: engine.drive(run)) == "record_unauthenticated"
    assert engine.notes() == []
    assert row(engine.store, "runs", id=run.id)["owner"] is None
    # Nothing is lost: a person who knows what happened has the choice.
    write(engine.store, "runs", {"id": run.id}, mac=whole)
    assert engine.drive(run).status is RunStatus.SUCCEEDED


def test_a_run_that_has_ended_does_not_run_again(engine: Engine) -> None:
    run = engine.run([GATE, step("pay")], "100")
    cancel_run(engine.store, run.id, actor="ann")
    write(engine.store, "runs", {"id": run.id}, status="running", error=None, completed_at=None)
    engine.drive_unread(run)
    failed = engine.run([step("broken"), step("pay")], "100")
    write(engine.store, "runs", {"id": failed.id}, status="running", error=None, completed_at=None)
    engine.drive_unread(failed)
    assert engine.notes() == ["broken"]
    assert row(engine.store, "runs", id=run.id)["error"]["type"] == "record_tampered"


def test_the_result_of_a_run_is_not_answered_with_another_one(engine: Engine) -> None:
    run = engine.run([step("pay")], "100")
    write(engine.store, "runs", {"id": run.id}, output_text="refused")
    assert code(lambda: find_run(engine.store, run.id)) == "record_tampered"


def test_a_run_that_was_changed_can_be_cancelled_and_stays_unauthenticated(engine: Engine) -> None:
    run = engine.run([GATE, step("pay")], "100")
    write(engine.store, "runs", {"id": run.id}, input_text="everything")
    write(engine.store, "tasks", {"run_id": run.id}, subject="something harmless")
    assert cancel_run(engine.store, run.id, actor="ann").status is RunStatus.CANCELLED
    assert code(lambda: find_run(engine.store, run.id)) == "record_unauthenticated"
    assert row(engine.store, "tasks", run_id=run.id)["mac"] is None


# ---- what people are asked and decide --------------------------------------------------------------------------------


DECISION = {
    "kind": "approved",
    "content": None,
    "selected_option": None,
    "comment": None,
    "actor": "ann",
    "by": "person",
    "at": "2026-01-31T12:00:00.000000+00:00",
    "selected_options": [],
    "voters": ["ann"],
}


def test_a_decision_that_nobody_made_is_not_applied(engine: Engine) -> None:
    run = engine.run([GATE, step("pay")], "100")
    (task,) = engine.open(run)
    write(engine.store, "tasks", {"id": task.id}, status="decided", decision=DECISION, next_at=None)
    write(engine.store, "runs", {"id": run.id}, status="running", signal_seq=1)
    engine.drive_unread(run)
    now = engine.look(run)
    assert (now.status, now.error and now.error.type) == (RunStatus.FAILED, "record_tampered")
    assert engine.notes() == []


def edited(decision: dict[str, Any]) -> dict[str, Any]:
    return {**decision, "kind": "edited", "content": "100000"}


def approved(decision: dict[str, Any]) -> dict[str, Any]:
    return {**decision, "kind": "approved", "effect": None}


def test_a_task_that_was_put_back_is_not_decided_a_second_time(engine: Engine) -> None:
    run = engine.run([GATE, step("pay")], "100")
    (task,) = engine.open(run)
    before = row(engine.store, "tasks", id=task.id), row(engine.store, "runs", id=run.id)
    engine.answer(task, "approved")
    engine.drive(run)
    assert engine.notes() == ["paid 100"]
    write(engine.store, "tasks", {"id": task.id}, **before[0])
    write(engine.store, "runs", {"id": run.id}, **before[1])
    with pytest.raises(KneoError) as caught:
        engine.answer(task, "approved")
    assert (caught.value.code, engine.notes()) == ("record_tampered", ["paid 100"])


@pytest.mark.parametrize(("said", "change"), [("approved", edited), ("rejected", approved)])
def test_a_recorded_decision_is_applied_as_it_was_made(
    engine: Engine, said: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    run = engine.run([GATE, step("pay")], "100")
    (task,) = engine.open(run)
    engine.answer(task, said)
    decision = row(engine.store, "tasks", id=task.id)["decision"]
    write(engine.store, "tasks", {"id": task.id}, decision=change(decision))
    engine.drive_unread(run)
    assert engine.look(run).status is RunStatus.FAILED
    assert engine.notes() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "1"},
        {"prompt": "Is the weather fine?"},
        {"candidates": {"users": ["eve"], "groups": [], "roles": [], "exclude": []}},
        {"quorum": {"approvals": 1, "each": [], "order": "any", "reject": "any"}},
        {"plan": {"escalate": [], "remind": [], "notify": [], "links": True, "receipt": "none", "reminded": 0}},
        {"decisions": ["approved"]},
        {"requester": "nobody"},
        {"metadata": {"facts": {"amount": 1}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_task_that_was_changed_is_neither_shown_nor_decided(engine: Engine, changes: dict[str, object]) -> None:
    human = {"description": "Fine?", "quorum": {"approvals": 2}, "candidates": {"users": ["ann", "ben"]}}
    run = engine.run([GATE, step("pay")], "100", ann=human)
    (task,) = engine.open(run)
    write(engine.store, "tasks", {"id": task.id}, **changes)
    with engine.store.read() as tx:
        assert code(lambda: find(tx, task.id)) == "record_tampered"
    assert code(lambda: engine.answer(task, "approved")) == "record_tampered"
    assert engine.notes() == []


def test_a_deadline_does_not_decide_for_anyone_who_changes_it(engine: Engine, clock: ManualClock) -> None:
    run = engine.run([GATE, step("pay")], "100", ann={"description": "Fine?", "timeout_seconds": 3600})
    (task,) = engine.open(run)
    past = isoformat(clock.now() - timedelta(hours=1))
    write(engine.store, "tasks", {"id": task.id}, on_timeout="approve", deadline_at=past, next_at=past)
    assert process_due(engine.store) == 0
    engine.drive_unread(run)
    assert engine.look(run).status is RunStatus.PAUSED
    assert engine.notes() == []


def test_votes_that_nobody_cast_do_not_count(engine: Engine) -> None:
    run = engine.run([GATE, step("pay")], "100", ann={"description": "Fine?", "quorum": {"approvals": 2}})
    (task,) = engine.open(run)
    engine.answer(task, "approved")
    (vote,) = row(engine.store, "tasks", id=task.id)["votes"]
    write(engine.store, "tasks", {"id": task.id}, votes=[vote, {**vote, "actor": "ben"}])
    assert code(lambda: engine.answer(task, "approved", actor="cy")) == "record_tampered"


def test_the_task_of_another_run_does_not_decide_this_one(engine: Engine) -> None:
    first, second = (engine.run([GATE, step("pay")], text) for text in ("1", "100000"))
    (small,), (large,) = engine.open(first), engine.open(second)
    engine.answer(small, "approved")
    decided = row(engine.store, "tasks", id=small.id)
    others = {name: value for name, value in decided.items() if name not in {"id", "run_id", "request_id"}}
    write(engine.store, "tasks", {"id": large.id}, **others)
    write(engine.store, "runs", {"id": second.id}, status="running", signal_seq=1)
    engine.drive_unread(second)
    assert engine.look(second).status is RunStatus.FAILED
    assert engine.notes() == []


# ---- the past of a run -----------------------------------------------------------------------------------------------


def passed_gate(engine: Engine) -> tuple[Run, HumanTask]:
    run = engine.run([GATE, step("pay"), step("again", "pay")], "100")
    (task,) = engine.open(run)
    engine.answer(task, "approved")
    return engine.drive(run), task


def forked(engine: Engine, run: Run, **order: Any) -> Run:
    request = ForkRequest(run_id=run.id, requester="eve", **order)
    return fork(engine.starter, ProgramLoader(engine.store), request)


def test_a_fork_does_not_begin_where_a_person_at_the_database_says(engine: Engine) -> None:
    run, _ = passed_gate(engine)
    notes = engine.notes()
    kept = row(engine.store, "checkpoints", run_id=run.id, sequence=4)
    changed = kept["state"].replace(b"100", b"999")
    assert changed != kept["state"]
    write(engine.store, "checkpoints", {"run_id": run.id, "sequence": 4}, state=changed)
    assert code(lambda: forked(engine, run, step="again")) == "record_tampered"
    assert engine.notes() == notes


def test_a_gate_is_not_forgotten_because_its_task_is_gone(engine: Engine) -> None:
    run, task = passed_gate(engine)
    tasks = metadata.tables["tasks"]
    with engine.store.write() as tx:
        tx.connection.execute(tasks.delete().where(tasks.c.id == task.id))
    assert code(lambda: forked(engine, run, step="again", input="999")) == "checkpoint_incomplete"
