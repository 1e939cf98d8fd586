"""Questions that an environment adds, in real runs: what they stand before has no effect without a yes."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import ENVIRONMENT, declare

from kneo.errors import Forbidden
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.start import StartRequest
from kneo.store import audit, history
from kneo.store.engine import Store

SOURCE = """
def pay(text): note("pay"); return "paid"
def tell(text): note("tell"); return text
"""
TREASURER = {"treasurer": {"description": "Pay?", "candidates": {"users": ["cy"]}}}
MONEY = {
    "name": "money",
    "match": {"refs": ["pay"]},
    "before": {"human": "treasurer", "on_reject": "stop", "candidates": {"users": ["cy"]}},
}


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    declare(store, inlineSpecs=True, humans=TREASURER, gates=[MONEY])
    return Engine(store, tmp_path / "code", SOURCE)


def start(engine: Engine, *steps: object, **humans: object) -> Run:
    tree = engine.tree(list(steps), **humans)
    run = engine.starter.start(StartRequest(input="in", requester="bob", spec=tree, environment=ENVIRONMENT))
    return engine.drive(run)


def only(engine: Engine, run: Run) -> HumanTask:
    [task] = engine.open(run)
    return task


def test_nothing_happens_before_somebody_agrees_nor_after_a_no(engine: Engine) -> None:
    run = start(engine, step("pay"), step("tell"))
    task = only(engine, run)
    assert (run.status, task.key, task.position, engine.notes()) == (RunStatus.PAUSED, "pay.before+money", "before", [])
    assert task.consequences["approved"] == {"next": ["pay"]}
    engine.answer(task, "rejected", actor="cy")
    assert (engine.drive(run).status, engine.notes()) == (RunStatus.CANCELLED, [])
    other = start(engine, step("pay"), step("tell"))
    engine.answer(only(engine, other), "approved", actor="cy")
    assert (engine.drive(other).status, engine.notes()) == (RunStatus.SUCCEEDED, ["pay", "tell"])


def test_whom_it_asks_is_the_environment_s_to_say(engine: Engine) -> None:
    """A spec that calls somebody else by the same name changes nothing."""
    run = start(engine, step("pay"), treasurer={"candidates": {"users": ["ann"]}}, default={"description": "?"})
    task = only(engine, run)
    with pytest.raises(Forbidden, match="not among those"):
        engine.answer(task, "approved", actor="ann")
    engine.answer(task, "approved", actor="cy")
    assert engine.drive(run).status is RunStatus.SUCCEEDED


def test_it_stands_beside_the_question_of_the_spec(engine: Engine) -> None:
    run = start(engine, step("pay", review={"before": {"human": "ann"}}))
    engine.answer(only(engine, run), "approved", actor="cy")
    run = engine.drive(run)
    task = only(engine, run)
    assert (task.key, engine.notes()) == ("pay.before", [])
    engine.answer(task, "approved", actor="ann")
    assert (engine.drive(run).status, engine.notes()) == (RunStatus.SUCCEEDED, ["pay"])


def test_a_run_keeps_the_questions_it_was_started_with(engine: Engine) -> None:
    run = start(engine, step("tell", review={"before": {"human": "ann"}}), step("pay"))
    declare(engine.store, inlineSpecs=True)
    engine.answer(only(engine, run), "approved", actor="ann")
    run = engine.drive(run)
    assert (only(engine, run).key, engine.notes()) == ("pay.before+money", ["tell"])
    with engine.store.read() as tx:
        [told] = audit.events(tx, event_type="run.created", run_id=run.id)
    assert told.event.metadata["environment_gates"] == ["money"]


def test_a_past_without_a_question_that_is_asked_today_is_not_used_again(engine: Engine) -> None:
    declare(engine.store, inlineSpecs=True)
    run = start(engine, step("tell"), step("pay"))
    assert engine.notes() == ["tell", "pay"]
    programs = ProgramLoader(engine.store)
    again = fork(engine.starter, programs, ForkRequest(run_id=run.id, step="pay", requester="bob"))
    assert again.status is RunStatus.RUNNING
    declare(engine.store, inlineSpecs=True, humans=TREASURER, gates=[MONEY])
    with pytest.raises(Forbidden, match="requires gates that it did not") as refused:
        fork(engine.starter, programs, ForkRequest(run_id=run.id, step="pay", requester="bob"))
    assert refused.value.code == "gates_changed"


def test_a_fork_does_not_pass_the_question_with_another_input(engine: Engine) -> None:
    run = start(engine, step("tell"), step("pay"))
    engine.answer(only(engine, run), "approved", actor="cy")
    run = engine.drive(run)
    programs, notes = ProgramLoader(engine.store), engine.notes()
    with engine.store.read() as tx:
        behind = next(item.sequence for item in history.list_checkpoints(tx, run.id) if item.type == "human_resume")
    for point in ({"checkpoint": behind}, {"step": "pay"}):
        order = ForkRequest(run_id=run.id, requester="mal", input="EVIL", **point)
        forked = engine.drive(fork(engine.starter, programs, order))
        task = only(engine, forked)
        assert (forked.status, task.key, task.subject) == (RunStatus.PAUSED, "pay.before+money", "EVIL")
        with pytest.raises(Forbidden):
            engine.answer(task, "approved", actor="mal")
    assert engine.notes() == notes
    same = fork(engine.starter, programs, ForkRequest(run_id=run.id, requester="bob", checkpoint=behind))
    assert (engine.drive(same).status, engine.notes()) == (RunStatus.SUCCEEDED, [*notes, "pay"])


def test_what_every_question_asks_for_here_holds_for_it_too(engine: Engine) -> None:
    declare(engine.store, inlineSpecs=True, humans=TREASURER, gates=[MONEY], questions={"exclude": ["cy"]})
    run = start(engine, step("pay"))
    with pytest.raises(Forbidden):
        engine.answer(only(engine, run), "approved", actor="cy")
