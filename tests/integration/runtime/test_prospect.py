"""What an answer leads to is true at the moment at which it is shown, whatever was answered since the question was opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine import Engine, step
from operation_context import operation_context
from sqlalchemy import update

from kneo.api.decisions import get_human_task
from kneo.records.run import Run, RunStatus
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.questions import as_it_stands, sampling_seed_of
from kneo.runtime.engine.record import RunContext, open_questions
from kneo.runtime.interpreter.node import DecisionContext, RunEnded
from kneo.runtime.interpreter.program import begin
from kneo.service.console.task_words import consequence
from kneo.store import runs, tables
from kneo.store.engine import Store
from kneo.store.history import CheckpointLimits
from kneo.tasks.inbox import find

SOURCE = """
def publish(text): note("published"); return text
def slow(text): return text
"""
FLOW = [
    {
        "id": "p",
        "kind": "parallel",
        "steps": [{"id": "g1", "kind": "human", "ref": "ann"}, {"id": "g2", "kind": "human", "ref": "ann"}],
    },
    step("publish"),
]


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


@pytest.fixture
def run(engine: Engine) -> Run:
    return engine.run(FLOW)


def by_key(engine: Engine, run: Run) -> dict[str, HumanTask]:
    return {task.key: task for task in engine.open(run)}


def shown(engine: Engine, task: HumanTask) -> dict[str, dict[str, object]]:
    with engine.store.read() as tx:
        found = as_it_stands(tx, find(tx, task.id)).consequences
    assert get_human_task(operation_context(engine.store), task.id).consequences == found
    return dict(found)


def test_open_siblings_name_each_other(engine: Engine, run: Run) -> None:
    asked = by_key(engine, run)
    first, second = shown(engine, asked["p/g1.step"]), shown(engine, asked["p/g2.step"])
    assert first["approved"] == {"next": [], "waits": ["p/g2.step"]}
    assert second["approved"] == {"next": [], "waits": ["p/g1.step"]}
    assert first["rejected"]["ends"] == second["rejected"]["ends"] == "cancelled"


def test_what_a_sibling_answered_counts(engine: Engine, run: Run) -> None:
    asked = by_key(engine, run)
    engine.answer(asked["p/g1.step"], "approved")
    # Whether the answer has taken effect yet makes no difference to whoever reads.
    before = shown(engine, asked["p/g2.step"])
    assert engine.drive(run).status is RunStatus.PAUSED
    after = shown(engine, asked["p/g2.step"])
    assert before == after
    assert after["approved"] == {"next": ["publish"]}
    assert consequence(after["approved"]) == "publish runs"
    engine.answer(asked["p/g2.step"], "approved")
    assert (engine.drive(run).status, engine.notes()) == (RunStatus.SUCCEEDED, ["published"])


def test_beside_an_answer_that_ends_the_run_nothing_follows(engine: Engine, run: Run) -> None:
    asked = by_key(engine, run)
    engine.answer(asked["p/g1.step"], "rejected")
    assert {told["ends"] for told in shown(engine, asked["p/g2.step"]).values()} == {"cancelled"}


def test_a_step_under_way_is_named(engine: Engine) -> None:
    beside = {"id": "p", "kind": "parallel", "steps": [{"id": "g", "kind": "human", "ref": "ann"}, step("slow")]}
    run = engine.start([beside, step("publish")])
    program = ProgramLoader(engine.store).load(run)
    # The question is opened while the step beside it is still to be done.
    with engine.store.write() as tx:
        owned = runs.acquire(tx, run.id, "w")
        assert owned is not None
        begun = begin(program, "in", DecisionContext(now=tx.now, seed=run.id, sampling_seed=sampling_seed_of(run)))
        assert not isinstance(begun, RunEnded)
        open_questions(tx, RunContext(program=program, limits=CheckpointLimits()), replace(owned, state=begun))
    [task] = engine.open(run)
    assert shown(engine, task)["approved"] == {"next": [], "running": ["p/slow"]}


def test_what_was_found_at_first_is_kept_with_an_answer(engine: Engine, run: Run) -> None:
    """A resolved task, and its receipt, stay as they were recorded."""
    asked = by_key(engine, run)
    answered = engine.answer(asked["p/g1.step"], "approved")
    engine.drive(run)
    assert shown(engine, asked["p/g1.step"]) == dict(answered.consequences)
    assert answered.decision is not None
    assert answered.decision.kind is DecisionKind.APPROVED


def test_a_spec_that_cannot_be_read_shows_none_rather_than_old_ones(engine: Engine, run: Run) -> None:
    [task, _] = engine.open(run)
    with engine.store.write() as tx:
        tx.connection.execute(update(tables.specs).values(body=b"{}"))
    assert shown(engine, task) == {}


def test_a_consequence_that_the_text_decides_is_shown_with_its_branches(engine: Engine) -> None:
    either = {
        "id": "c",
        "kind": "condition",
        "when": {"type": "output_contains", "value": "urgent"},
        "steps": [{"id": "publish", "kind": "function", "ref": "publish"}],
        "else": [{"id": "log", "kind": "function", "ref": "slow"}],
    }
    ask = {"id": "g", "kind": "human", "ref": "forwarding"}
    run = engine.run([ask, either], forwarding={"description": "Well?", "on_reject": "continue"})
    told = shown(engine, by_key(engine, run)["g.step"])
    branches = [{"next": ["c/log"]}, {"next": ["c/publish"]}]
    assert told["rejected"] == {"depends_on": "answer", "branches": branches, "effect": "continue"}
    assert told["approved"] == {"next": ["c/log"]}
    assert consequence(told["rejected"]) == (
        "what follows depends on your answer: either c/log runs, or c/publish runs"
    )
