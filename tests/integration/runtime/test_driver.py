"""Runs on a real database: what is at once, what stops, what is written."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually

from kneo.clock import SystemClock
from kneo.records.run import RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine.recover import cancel_run
from kneo.runtime.engine.wait import SettledRun
from kneo.store import history, runs
from kneo.store.migrate import open_store
from kneo.tasks.inbox import find

SOURCE = """
def slow(text): time.sleep(0.3); note("slow"); return text + ">slow"
together, later_together = threading.Barrier(4), asyncio.Barrier(4)
def meet(text): together.wait(240); return text + ">meet"
async def meet_later(text):
    async with asyncio.timeout(240), later_together: return text + ">meet_later"
def quick(text): note("quick"); return text + ">quick"
async def later(text): await asyncio.sleep(0.3); return text + ">later"
def forever(text):
    note("begun"); time.sleep(600); note("woke"); return "late"
def patient(text, context):
    note("begun")
    note("cancelled" if context.token.wait(600) else "not cancelled")
async def hang(text):
    note("begun")
    try: await asyncio.sleep(600)
    except asyncio.CancelledError: note("cancelled"); raise
def broken(text): raise ValueError("no")
def flaky(text, context):
    note(context.idempotency_key)
    if context.attempt < 2: raise ValueError("not yet")
    return "at last"
def dies(text): os._exit(3)
def where(text): return str(os.getppid())
def revise(text, context): return f"{text}|{context.previous_output}|{context.feedback}"
def none(text): return None
"""


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Engine:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


@pytest.mark.parametrize("kind", ["meet", "meet_later"])
def test_concurrent_participants_really_run_at_once(engine: Engine, kind: str) -> None:
    participants = [step(f"s{number}", kind) for number in range(4)]
    run = engine.run({"type": "concurrent", "participants": participants})
    assert run.status is RunStatus.SUCCEEDED, "none ends before all four have begun"
    assert run.output_text == f"in>{kind}"
    assert run.metadata["outputs"] == {f"s{number}": f"in>{kind}" for number in range(4)}
    assert len(engine.steps(run)) == 4


ASKED = {"id": "q", "kind": "human", "ref": "ann"}


@pytest.mark.parametrize("last", ["quick", "broken"])
def test_what_is_told_of_a_run_that_is_let_go_is_what_stands_in_the_database(engine: Engine, last: str) -> None:
    run = engine.start({"type": "sequential", "steps": [step("later"), ASKED, step(last)]})
    told: list[object] = []
    with engine.store.notifier.listen(run.id, told.append):
        waiting = engine.drive(run)
        assert _plain(told.pop()) == _plain(SettledRun(waiting, engine.open(waiting)))
        engine.answer(engine.open(run)[0], "approved")
        assert not told
        ended = engine.drive(run)
        assert _plain(told.pop()) == _plain(SettledRun(ended))
        assert not told


def test_of_a_run_that_asks_more_than_was_asked_just_now_only_is_told_that_there_is_news(engine: Engine) -> None:
    branches = [{"id": f"b{n}", "kind": "steps", "steps": [ASKED, ASKED | {"id": "again"}]} for n in range(2)]
    run = engine.run({"type": "concurrent", "participants": branches})
    told: list[object] = []
    with engine.store.notifier.listen(run.id, told.append):
        engine.answer(engine.open(run)[0], "approved")
        engine.drive(run)
    assert told == [None]


def test_whoever_waits_is_told_of_a_run_that_was_cancelled(engine: Engine) -> None:
    run = engine.run({"type": "sequential", "steps": [ASKED]})
    told: list[object] = []
    with engine.store.notifier.listen(run.id, told.append):
        cancel_run(engine.store, run.id, actor="bob")
        assert told == [None]


def _plain(told: object) -> object:
    assert isinstance(told, SettledRun)
    plain = json.loads(json.dumps(asdict(told), default=str))
    # Codes are of rows that were read; a record that was just written has the one of before.
    for record in (plain["run"], *plain["tasks"]):
        record.pop("mac")
    return plain


def test_three_questions_are_open_at_once_and_answered_in_any_order(engine: Engine) -> None:
    branches = [
        {"id": f"b{n}", "kind": "steps", "steps": [{"id": "q", "kind": "human", "ref": "ann"}, step("quick")]}
        for n in range(3)
    ]
    run = engine.run({"type": "concurrent", "participants": branches})
    assert run.status is RunStatus.PAUSED
    waiting = engine.open(run)
    assert sorted(task.key for task in waiting) == ["b0/q.step", "b1/q.step", "b2/q.step"]
    for left, task in zip((2, 1, 0), reversed(waiting), strict=True):
        engine.answer(task, "approved")
        run = engine.drive(run)
        assert len(engine.open(run)) == left
    assert run.status is RunStatus.SUCCEEDED
    assert engine.notes() == ["quick"] * 3


def test_answers_that_came_together_all_take_effect(engine: Engine) -> None:
    asks = [{"id": f"q{n}", "kind": "human", "ref": "ann"} for n in range(3)]
    run = engine.run({"type": "concurrent", "participants": asks})
    for number, task in enumerate(engine.open(run)):
        engine.answer(task, "provided", f"answer {number}")
    run = engine.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    assert sorted(run.metadata["outputs"].values()) == ["answer 0", "answer 1", "answer 2"]


def test_an_answer_takes_effect_while_another_branch_is_at_work(engine: Engine) -> None:
    run = engine.start(
        {"type": "concurrent", "participants": [step("hang"), {"id": "q", "kind": "human", "ref": "ann"}]}
    )
    driving = threading.Thread(target=lambda: asyncio.run(engine.driver().drive_alone(run.id)))
    driving.start()
    task = eventually(lambda: engine.open(run))[0]
    eventually(lambda: engine.notes() == ["begun"])
    engine.answer(task, "rejected")
    driving.join(240)
    assert not driving.is_alive()
    assert engine.look(run).status is RunStatus.CANCELLED
    assert engine.notes() == ["begun", "cancelled"]


@pytest.mark.parametrize(("kind", "seconds"), [("hang", None), ("patient", None), ("forever", 500)])
def test_cancelling_reaches_a_step_that_another_process_runs(engine: Engine, kind: str, seconds: int | None) -> None:
    limit = {"timeout_seconds": seconds} if seconds else {}
    engine.level = "process" if kind == "forever" else "none"
    run = engine.start([step("s", kind, **limit), step("quick")])
    driving = threading.Thread(target=lambda: asyncio.run(engine.driver().drive_alone(run.id)))
    driving.start()
    eventually(lambda: engine.notes() == ["begun"])
    cancel_run(engine.store, run.id, actor="ann")
    driving.join(240)
    assert not driving.is_alive(), "the step alone would have taken ten minutes"
    assert engine.look(run).status is RunStatus.CANCELLED
    assert engine.steps(run) == []
    expected = ["begun"] if kind == "forever" else ["begun", "cancelled"]
    eventually(lambda: engine.notes() == expected)


@pytest.mark.parametrize("kind", ["forever", "hang"])
def test_a_time_limit_stops_the_work(engine: Engine, kind: str) -> None:
    engine.level = "process" if kind == "forever" else "none"
    run = engine.run([step("s", kind, timeout_seconds=2)])
    assert run.status is RunStatus.FAILED
    assert run.error.type == "step_timeout"
    assert "woke" not in engine.notes()


def test_a_template_is_kept_for_the_next_call(engine: Engine) -> None:
    engine.level = "process"
    run = engine.run([step("one", "where"), step("two", "where")])
    with engine.store.read() as tx:
        first, second = history.list_steps(tx, run.id)
    assert first.output_text == second.output_text
    assert first.code_digest is not None
    assert first.facts["sandbox"]["level"] == "process"


def test_a_function_that_takes_its_process_down_is_a_failed_step(engine: Engine) -> None:
    engine.level = "process"
    run = engine.run([step("dies", on_error="continue"), step("quick")])
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "in>quick")


def test_retries_are_recorded_with_keys_of_their_own(engine: Engine) -> None:
    run = engine.run([step("flaky", max_retries=2)])
    assert run.output_text == "at last"
    assert engine.steps(run) == [("flaky", "failed"), ("flaky", "failed"), ("flaky", "completed")]
    assert engine.notes() == [f"{run.id}:flaky:{attempt}" for attempt in range(3)]


def test_a_failure_is_recorded_with_what_it_said(engine: Engine) -> None:
    run = engine.run([step("broken")])
    assert (run.status, run.error.type, run.error.message) == (RunStatus.FAILED, "ValueError", "no")


def test_functions_return_texts(engine: Engine) -> None:
    assert engine.run([step("none")]).output_text == "None"


def test_a_rejected_result_comes_back_with_what_was_said(engine: Engine) -> None:
    review = {"after": {"human": "ann", "on_reject": "retry", "prompt": "Good, {{ run.input }}? {{ output }} {{ x }}"}}
    run = engine.run([step("revise", review=review)])
    task = engine.open(run)[0]
    assert task.prompt == "Good, in? in|None|None {{ x }}"
    assert (task.key, task.kind) == ("revise.after", "review")
    engine.answer(task, "rejected", "shorter")
    run = engine.drive(run)
    task = engine.open(run)[0]
    assert (task.key, task.subject) == ("revise@1.after", "in|in|None|None|shorter")
    assert task.previous == "in|None|None"
    engine.answer(task, "approved")
    assert engine.drive(run).status is RunStatus.SUCCEEDED


def test_a_question_nothing_waits_for_any_more_is_withdrawn(engine: Engine) -> None:
    group = {
        "id": "g",
        "kind": "parallel",
        "on_error": "continue",
        "steps": [step("broken"), {"id": "q", "kind": "human", "ref": "ann"}],
    }
    ask = {"id": "ask", "kind": "human", "ref": "ann"}
    both = [{"id": "s", "kind": "steps", "steps": [ask, step("broken")]}, {"id": "q", "kind": "human", "ref": "ann"}]
    run = engine.run([{**group, "steps": both}, step("quick")])
    opened = {task.key: task for task in engine.open(run)}
    engine.answer(opened["g/s/ask.step"], "approved")
    run = engine.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "in>quick")
    with engine.store.read() as tx:
        gone = find(tx, opened["g/q.step"].id)
    assert gone.status is TaskStatus.CANCELLED
    assert gone.metadata["reason"] == "superseded"


def test_declared_schemas_are_held(engine: Engine) -> None:
    tree = engine.tree([step("quick")])
    function = tree["components"]["functions"]["quick"]
    function["input_schema"] = {"type": "object", "required": ["x"]}
    from kneo.runtime.engine.start import StartRequest

    def run(text: str) -> object:
        order = StartRequest(input=text, requester="bob", spec=tree)
        return engine.drive(engine.starter.start(order))

    assert run('{"x": 1}').status is RunStatus.SUCCEEDED
    assert run("{}").error.type == "function_input_invalid"
    function["output_schema"] = {"type": "integer"}
    assert run('{"x": 1}').error.type == "function_output_invalid"


def test_a_run_of_an_earlier_version_goes_on(engine: Engine) -> None:
    run = engine.start([step("quick"), {"id": "q", "kind": "human", "ref": "ann"}, step("slow")])
    old = {"node": "", "index": 2, "child": {"node": "slow", "input": "from before", "attempt": 0}}
    with engine.store.write() as tx:
        claimed = runs.acquire(tx, run.id, "old")
        runs.commit(tx, replace(claimed, state=old, state_version=1), state=old, state_version=1, owner=None)
    run = engine.drive(run)
    assert run.output_text == "from before>slow"


def test_what_a_newer_version_wrote_is_left_to_it(engine: Engine) -> None:
    run = engine.start([step("quick")])
    with engine.store.write() as tx:
        claimed = runs.acquire(tx, run.id, "new")
        runs.commit(tx, replace(claimed, state_version=99), state_version=99, owner=None)
        assert runs.list_runnable(tx, 10) == ()
    assert engine.drive(run).status is RunStatus.RUNNING
    assert engine.notes() == []
