"""Functions that ask a person in the middle of their work."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step

from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.records.task import DecisionKind
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest, decision_from_value, rejection
from kneo.tasks.inbox import decide

SOURCE = """
from kneo.function_context import Declined

def name_it(text, context):
    note(f"before {context.idempotency_key}")
    name = context.wait("What is it called?", schema={"type": "string", "minLength": 2})
    colour = context.wait("Which colour?", name="colour", options=["red", "blue"])
    note("after")
    return f"{text} {name} {colour}"

async def later(text, context): return str(context.wait("How many?", show="0 to 9"))
def careful(text, context):
    try: context.wait("Go on?")
    except Exception as error: return f"{type(error).__name__}: {error}"
def fickle(text, context):
    note("asked")
    return str(context.wait(f"Question {len(LOG.read_text().splitlines()) % 2}"))
def whom(text, context): return str(context.wait("Fine?", human="nobody"))
def legal(text, context): return str(context.wait("Fine?", human="lawyer", name="fine"))
"""


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def give(engine: Engine, run: object, value: object) -> None:
    task = engine.open(run)[0]
    decide(engine.store, task.id, decision_from_value(task, value), actor="ann")


def test_a_function_waits_for_one_answer_after_the_other(engine: Engine) -> None:
    run = engine.run([step("name_it")])
    first = engine.open(run)[0]
    assert (run.status, first.key, first.kind, first.prompt) == (
        RunStatus.PAUSED,
        "name_it.wait",
        "freeform",
        "What is it called?",
    )
    with pytest.raises(KneoError) as caught:
        give(engine, run, "x")
    assert caught.value.code == "human_input_invalid"
    give(engine, run, "Kneo")
    run = engine.drive(run)
    second = engine.open(run)[0]
    assert (second.key, second.options) == ("name_it.colour", ("red", "blue"))
    give(engine, run, "blue")
    run = engine.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "in Kneo blue")
    # Begun three times under one key, done once.
    assert engine.notes() == [*[f"before {run.id}:name_it:0"] * 3, "after"]
    assert engine.steps(run) == [("name_it", "completed")]


@pytest.mark.parametrize("value", [{"n": 3}, [1, 2], 4, "text", '{"a": 1}'])
def test_any_value_is_an_answer_where_nothing_is_said_about_it(engine: Engine, value: object) -> None:
    run = engine.run([step("later")])
    task = engine.open(run)[0]
    assert task.subject == "How many?\n\n0 to 9"
    give(engine, run, value)
    assert engine.drive(run).output_text == str(value)


def test_whoever_gives_nothing_is_heard(engine: Engine) -> None:
    run = engine.run([step("careful")])
    task = engine.open(run)[0]
    decide(engine.store, task.id, rejection(task, "too early"), actor="ann")
    assert engine.drive(run).output_text == "Declined: too early"
    run = engine.run([step("later")])
    task = engine.open(run)[0]
    decide(engine.store, task.id, rejection(task), actor="ann")
    run = engine.drive(run)
    assert (run.status, run.error.type) == (RunStatus.FAILED, "Declined")


def test_an_answer_to_another_question_is_none(engine: Engine) -> None:
    run = engine.run([step("fickle")])
    assert engine.open(run)[0].prompt == "Question 1"
    give(engine, run, "one")
    run = engine.drive(run)
    assert engine.open(run)[0].prompt == "Question 0"
    give(engine, run, "zero")
    run = engine.drive(run)
    assert engine.open(run)[0].prompt == "Question 1"


def test_a_human_of_the_spec_is_asked_as_the_spec_says(engine: Engine) -> None:
    lawyer = {"candidates": {"users": ["cy"]}, "quorum": {"approvals": 2}, "timeout_seconds": 60, "title": "Law"}
    run = engine.run([step("legal")], lawyer=lawyer)
    task = engine.open(run)[0]
    assert (task.key, task.title, task.candidates.users, task.quorum.approvals) == ("legal.fine", "Law", ("cy",), 2)
    assert engine.run([step("whom")]).error.type == "unknown_human"


def test_a_function_with_a_time_limit_waits_too(engine: Engine) -> None:
    run = engine.run([step("name_it", timeout_seconds=30)])
    give(engine, run, "Kneo")
    run = engine.drive(run)
    give(engine, run, "red")
    assert engine.drive(run).output_text == "in Kneo red"


def test_what_a_task_asks_cannot_be_answered_with_a_bare_approval(engine: Engine) -> None:
    run = engine.run([step("later")])
    task = engine.open(run)[0]
    assert set(task.decisions) == {"provided", "rejected"}
    with pytest.raises(KneoError) as caught:
        decide(
            engine.store,
            task.id,
            DecisionRequest(request_id=task.request_id, decision=DecisionKind.APPROVED),
            actor="ann",
        )
    assert caught.value.code == "decision_not_allowed"
