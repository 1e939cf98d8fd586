"""Who wins when two come at once, and what a deadline does; on a clock that only the test moves."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step
from processes import at_once
from sqlalchemy import event

from kneo.clock import ManualClock
from kneo.errors import Conflict, KneoError
from kneo.records.run import Run, RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine.recover import cancel_run
from kneo.runtime.engine.timers import tick
from kneo.store import history, tasks
from kneo.store.engine import Store
from kneo.tasks.inbox import find

SOURCE = """
def a(text): return text + ">a"
def publish(text): note("published"); return text + ">published"
"""
HUMAN = {"id": "q", "kind": "human", "ref": "ann"}


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def waiting(engine: Engine, **human: object) -> Run:
    ann = {"description": "Fine?", "timeout_seconds": 60, **human}
    run = engine.run([step("a"), HUMAN, step("publish")], ann=ann)
    assert run.status is RunStatus.PAUSED
    return run


def test_of_twenty_answers_one_wins(engine: Engine) -> None:
    run = waiting(engine)
    task = engine.open(run)[0]

    def answer(number: int) -> object:
        try:
            return engine.answer(task, "provided", f"answer {number}", actor=f"person {number}").decision.actor
        except KneoError as error:
            return error

    outcomes = at_once(20, answer)
    winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(winners) == 1
    refused = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert {error.code for error in refused} == {"human_task_decided"}
    assert all(isinstance(error, Conflict) for error in refused)
    run = engine.drive(run)
    assert run.output_text == f"answer {winners[0].split()[1]}>published"
    assert engine.notes() == ["published"]


def test_a_cancelled_run_takes_no_answers_and_publishes_nothing(engine: Engine) -> None:
    run = waiting(engine)
    task = engine.open(run)[0]
    cancel_run(engine.store, run.id, actor="bob")
    with pytest.raises(Conflict) as caught:
        engine.answer(task, "approved")
    assert caught.value.code == "human_task_cancelled"
    assert engine.drive(run).status is RunStatus.CANCELLED
    assert engine.notes() == []


def test_an_answered_run_that_is_cancelled_before_it_went_on_publishes_nothing(engine: Engine) -> None:
    run = waiting(engine)
    engine.answer(engine.open(run)[0], "approved")
    cancel_run(engine.store, run.id, actor="bob")
    assert engine.drive(run).status is RunStatus.CANCELLED
    assert engine.notes() == []


def test_a_cancel_that_wins_against_the_application_of_a_decision_is_no_error(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    if engine.store.is_sqlite:
        pytest.skip("SQLite has one writer: nothing happens between two statements of a transaction")
    run = waiting(engine)
    engine.answer(engine.open(run)[0], "approved")
    reads = []

    def cancel(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("SELECT tasks.id") and "tasks.status = " in statement:
            reads.append(statement)
            # The first one looks whether there is a decision, the second one reads it to apply it.
            if len(reads) == 2:
                cancel_run(engine.store, run.id, actor="bob")

    event.listen(engine.store.engine, "after_cursor_execute", cancel)
    now = engine.drive(run)
    event.remove(engine.store.engine, "after_cursor_execute", cancel)
    assert now.status is RunStatus.CANCELLED
    assert engine.notes() == []
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    with engine.store.read() as tx:
        (task,) = tasks.of_run(tx, run.id, TaskStatus)
    assert task.status is TaskStatus.CANCELLED


def test_after_the_deadline_nobody_answers_even_before_it_was_noticed(engine: Engine, clock: ManualClock) -> None:
    run = waiting(engine)
    task = engine.open(run)[0]
    clock.advance(timedelta(seconds=61))
    with pytest.raises(Conflict) as caught:
        engine.answer(task, "approved")
    assert caught.value.code == "human_task_expired"
    tick(engine.store)
    assert engine.look(run).status is RunStatus.EXPIRED
    assert engine.look(run).error.type == "human_task_expired"
    assert engine.notes() == []


def test_what_was_answered_in_time_is_not_undone_by_the_deadline(engine: Engine, clock: ManualClock) -> None:
    run = waiting(engine, on_timeout="reject")
    engine.answer(engine.open(run)[0], "approved")
    clock.advance(timedelta(seconds=61))
    tick(engine.store)
    assert engine.drive(run).output_text == "in>a>published"


def test_the_trace_of_a_run_that_time_ended_says_how_it_ended(engine: Engine, clock: ManualClock) -> None:
    silent = waiting(engine)
    late = engine.drive(engine.start([HUMAN, step("publish")], timeout_seconds=30))
    clock.advance(timedelta(seconds=61))
    tick(engine.store)
    with engine.store.read() as tx:
        ends = {run.id: history.list_trace(tx, run.id)[-1] for run in (silent, late)}
    assert {run: (last.type, last.data["error"]["type"]) for run, last in ends.items()} == {
        silent.id: ("workflow_failed", "human_task_expired"),
        late.id: ("workflow_failed", "run_timed_out"),
    }


@pytest.mark.parametrize(
    ("word", "status", "output"),
    [
        ("fail", RunStatus.EXPIRED, None),
        ("continue", RunStatus.SUCCEEDED, "in>a>published"),
        ("approve", RunStatus.SUCCEEDED, "in>a>published"),
        ("reject", RunStatus.CANCELLED, None),
        ("skip", RunStatus.SUCCEEDED, "in>a>published"),
        ("cancel", RunStatus.CANCELLED, None),
        ("select:later", RunStatus.SUCCEEDED, "later>published"),
        ("select:never", RunStatus.EXPIRED, None),
    ],
)
def test_what_a_deadline_does(
    engine: Engine, clock: ManualClock, word: str, status: RunStatus, output: str | None
) -> None:
    options = {"options": ["now", "later"]} if word.startswith("select") else {}
    run = waiting(engine, on_timeout=word, **options)
    clock.advance(timedelta(seconds=61))
    tick(engine.store)
    run = engine.drive(run)
    assert (run.status, run.output_text) == (status, output)
    assert engine.notes() == (["published"] if output else [])


@pytest.mark.parametrize("own", [None, 3600])
def test_a_step_that_asks_states_its_own_deadline(engine: Engine, clock: ManualClock, own: int | None) -> None:
    ann = {"description": "Fine?", **({"timeout_seconds": own} if own else {})}
    run = engine.run([step("a"), {**HUMAN, "timeout_seconds": 60}, step("publish")], ann=ann)
    clock.advance(timedelta(seconds=59))
    tick(engine.store)
    assert engine.look(run).status is RunStatus.PAUSED
    clock.advance(timedelta(seconds=2))
    tick(engine.store)
    assert engine.drive(run).status is RunStatus.EXPIRED
    assert engine.notes() == []


def test_an_escalated_question_stays_answerable(engine: Engine, clock: ManualClock) -> None:
    run = waiting(engine, on_timeout="escalate")
    task = engine.open(run)[0]
    clock.advance(timedelta(seconds=61))
    tick(engine.store)
    with engine.store.read() as tx:
        assert find(tx, task.id).escalated_at is not None
    tick(engine.store)
    engine.answer(task, "approved")
    assert engine.drive(run).status is RunStatus.SUCCEEDED


def test_a_runs_own_deadline_closes_what_it_asked(engine: Engine, clock: ManualClock) -> None:
    run = engine.drive(engine.start([HUMAN, step("publish")], timeout_seconds=30))
    task = engine.open(run)[0]
    clock.advance(timedelta(seconds=31))
    tick(engine.store)
    run = engine.look(run)
    assert (run.status, run.error.type) == (RunStatus.TIMED_OUT, "run_timed_out")
    with engine.store.read() as tx:
        assert find(tx, task.id).status is TaskStatus.CANCELLED
    with pytest.raises(Conflict):
        engine.answer(task, "approved")
