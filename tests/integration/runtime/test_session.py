"""A plain function is called in the thread that drives its run; nothing of one that nobody waits for any more counts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually

from kneo.background import background
from kneo.clock import SystemClock
from kneo.errors import Transient
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.recover import cancel_run
from kneo.runtime.engine.worker import THREADS, Worker
from kneo.runtime.steps import threads
from kneo.store.migrate import open_store

SOURCE = """
import contextvars, sys
seen = contextvars.ContextVar("seen", default="nothing")
GO_ON = Path(__file__).with_suffix(".go")
def deaf(text):
    note("begun")
    deadline = time.monotonic() + 240
    while not GO_ON.exists() and time.monotonic() < deadline: time.sleep(0.01)
    note("ended")
    return text + ">deaf"
async def waits(text):
    note("begun")
    while not GO_ON.exists(): await asyncio.sleep(0.02)
    return text + ">waits"
def thread(text): return f"{text}>{threading.get_ident()}"
def sets(text): before = seen.get(); seen.set("something"); return text + ">" + before
async def sets_later(text): return sets(text)
def leaves(text): sys.exit(3)
async def leaves_later(text): sys.exit("why not")
def stops(text): raise asyncio.CancelledError("enough")
async def stops_later(text): raise asyncio.CancelledError("enough")
"""


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, SystemClock(), find_key)
    made = Engine(store, tmp_path / "code", SOURCE)
    yield made
    let_them_end(made)
    store.close()


def let_them_end(engine: Engine) -> None:
    engine.log.with_suffix(".go").touch()


def test_a_line_of_plain_functions_has_one_thread(engine: Engine) -> None:
    run = engine.run([step(f"s{number}", "thread") for number in range(4)])
    assert len(set(run.output_text.split(">")[1:])) == 1


@pytest.mark.parametrize("function", ["sets", "sets_later"])
def test_what_a_step_sets_in_its_context_is_not_there_for_the_next_one(engine: Engine, function: str) -> None:
    assert engine.run([step("one", function), step("two", function)]).output_text == "in>nothing>nothing"


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        ("leaves", "SystemExit", "3"),
        ("leaves_later", "SystemExit", "why not"),
        ("stops", "CancelledError", "enough"),
        ("stops_later", "CancelledError", "enough"),
    ],
)
def test_a_step_that_wants_to_end_who_executes_it_has_failed(
    engine: Engine, function: str, kind: str, said: str
) -> None:
    run = engine.run([step("s", function)])
    assert (run.status, run.error.type, run.error.message) == (RunStatus.FAILED, kind, said)


def test_a_run_is_let_go_of_when_the_loop_of_its_steps_ends_without_a_word(engine: Engine) -> None:
    run = engine.start([step("one", "thread"), step("two", "sets_later")])
    loop = asyncio.new_event_loop()
    session = engine.driver().session(run.id, loop, lambda _: None)
    loop.close()
    with pytest.raises(Transient, match="has ended"):
        session.advance()
    assert (engine.look(run).status, engine.look(run).owner) == (RunStatus.RUNNING, None)
    assert engine.drive(run).status is RunStatus.SUCCEEDED
    assert engine.steps(run) == [("one", "completed"), ("two", "completed")]


def test_nobody_waits_for_a_function_that_does_not_hear_that_its_run_was_cancelled(engine: Engine) -> None:
    run = engine.start([step("deaf"), step("thread")])
    driving = threading.Thread(target=lambda: asyncio.run(engine.driver().drive_alone(run.id)))
    driving.start()
    assert eventually(lambda: engine.notes() == ["begun"])
    cancel_run(engine.store, run.id, actor="ann")
    driving.join(200)
    assert not driving.is_alive(), "the function ends only after the test, or later than this"
    _end_and_look(engine, run, RunStatus.CANCELLED, [])


def test_what_a_driver_that_was_cut_short_still_does_is_discarded(engine: Engine) -> None:
    run = engine.start([step("deaf"), step("thread")])

    async def cut_short() -> None:
        driver = engine.driver()
        driving = asyncio.create_task(driver.drive(run.id))
        await asyncio.to_thread(eventually, lambda: engine.notes() == ["begun"])
        driving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await driving
        assert driving.cancelled()

    asyncio.run(cut_short())
    assert engine.look(run).owner is None
    _end_and_look(engine, run, RunStatus.RUNNING, [])
    assert engine.drive(run).status is RunStatus.SUCCEEDED
    assert engine.notes() == ["begun", "ended", "begun", "ended"]
    assert engine.steps(run) == [("deaf", "completed"), ("thread", "completed")]


def test_a_worker_goes_on_without_the_thread_of_a_function_that_nobody_waits_for(engine: Engine) -> None:
    if not engine.store.is_sqlite:
        pytest.skip("another worker's part")
    worker = Worker(engine.store, engine.driver(), concurrency=1)
    with background("worker", worker.run, worker.stop):
        stuck, after = engine.start([step("deaf")]), engine.start([step("thread")])
        assert eventually(lambda: engine.notes() == ["begun"])
        assert engine.look(after).status is RunStatus.RUNNING
        cancel_run(engine.store, stuck.id, actor="ann")
        assert eventually(lambda: engine.look(after).status is RunStatus.SUCCEEDED)
        _end_and_look(engine, stuck, RunStatus.CANCELLED, [])


def test_runs_that_wait_for_async_steps_hold_no_threads(engine: Engine) -> None:
    count = 60
    before = threading.active_count()
    begun = [engine.start([step("waits"), step("thread")]) for _ in range(count)]

    def threads_held() -> int:
        return threading.active_count() - before

    async def drive_all() -> int:
        driver = engine.driver()
        driving = [asyncio.create_task(driver.drive(run.id)) for run in begun]
        # This looks from a thread of its own, which counts.
        assert await asyncio.to_thread(eventually, lambda: len(engine.notes()) == count)
        assert await asyncio.to_thread(eventually, lambda: threads_held() <= THREADS + 2)
        held = threads_held()
        let_them_end(engine)
        await asyncio.gather(*driving)
        return held

    assert asyncio.run(drive_all()) <= THREADS + 2
    assert {engine.look(run).status for run in begun} == {RunStatus.SUCCEEDED}


def test_an_answer_takes_effect_beside_an_async_step_that_still_waits(engine: Engine) -> None:
    branches = [
        step("waits"),
        {"id": "ask", "kind": "steps", "steps": [{"id": "fine", "kind": "human", "ref": "ann"}, step("sets")]},
    ]
    run = engine.start([{"id": "both", "kind": "parallel", "steps": branches}])
    driving = threading.Thread(target=lambda: asyncio.run(engine.driver().drive_alone(run.id)))
    driving.start()
    (task,) = eventually(lambda: engine.open(run))
    engine.answer(task, "approved")
    assert eventually(lambda: ("both/ask/sets", "completed") in engine.steps(run))
    assert engine.look(run).status is RunStatus.RUNNING
    let_them_end(engine)
    driving.join(240)
    assert engine.look(run).status is RunStatus.SUCCEEDED


def _end_and_look(engine: Engine, run: Run, status: RunStatus, steps: list[tuple[str, str]]) -> None:
    let_them_end(engine)
    assert eventually(lambda: engine.notes() == ["begun", "ended"])
    assert eventually(_threads_are_idle)
    assert (engine.look(run).status, engine.steps(run)) == (status, steps)


def _threads_are_idle() -> bool:
    """Whether whoever called a function has done with what it returned."""
    return all(thread in threads._idle for thread in threading.enumerate() if thread.name == "step")
