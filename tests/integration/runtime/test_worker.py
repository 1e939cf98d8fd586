"""A worker of one process begins what commits of its process told it, and finds what other processes made due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually

from kneo.background import background
from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.worker import Worker
from kneo.runtime.steps.threads import BoundedThreads
from kneo.store.migrate import open_store

STEPS = """
def quick(text): return text + ">quick"
"""
FLOW = [step("quick")]


@pytest.fixture
def engine(sqlite_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(sqlite_url, SystemClock(), find_key)
    with_worker = Engine(store, tmp_path / "code", STEPS)
    worker = Worker(store, with_worker.driver(), concurrency=2)
    with background("worker", worker.run, worker.stop):
        yield with_worker
    store.close()


def succeeded(engine: Engine, run: Run) -> bool:
    return engine.look(run).status is RunStatus.SUCCEEDED


def test_more_than_there_is_room_for_are_all_begun(engine: Engine) -> None:
    begun = [engine.start(FLOW) for _ in range(12)]
    assert eventually(lambda: all(succeeded(engine, run) for run in begun))


def test_a_worker_that_is_never_idle_finds_what_others_made_due(
    engine: Engine, sqlite_url: str, tmp_path: Path
) -> None:
    other = open_store(sqlite_url, SystemClock(), find_key)
    elsewhere = Engine(other, tmp_path / "code", STEPS).start(FLOW)
    other.close()

    def busy_and_done() -> bool:
        engine.start(FLOW)
        return succeeded(engine, elsewhere)

    assert eventually(busy_and_done)


def test_an_answer_that_comes_while_the_driver_lets_go_is_not_left_lying(engine: Engine) -> None:
    run = engine.start(
        [{"id": "first", "kind": "human", "ref": "ann"}, {"id": "second", "kind": "human", "ref": "ann"}]
    )
    for _ in range(2):
        (task,) = eventually(lambda: engine.open(run))
        engine.answer(task, "approved")
    assert eventually(lambda: succeeded(engine, run))


def test_whoever_starts_a_run_does_not_suffer_when_there_is_no_thread_for_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker's loop may find the run before the commit tells it: whichever asks for a thread first gets none.
    refused, submit = Event(), BoundedThreads.submit

    def none_left_at_first(threads: BoundedThreads, work: Callable[[], None]) -> None:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        submit(threads, work)

    monkeypatch.setattr(BoundedThreads, "submit", none_left_at_first)
    run = engine.start(FLOW)
    assert eventually(lambda: succeeded(engine, run))
    assert refused.is_set()
