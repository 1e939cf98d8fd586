"""An environment with thousands of due runs delays the first run of another one by at most one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually

from kneo.background import background
from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.runtime.dispatch.postgres import QueueWorker
from kneo.runtime.engine import admission
from kneo.runtime.engine.admission import FairQueue
from kneo.runtime.engine.worker import Worker
from kneo.store import runs
from kneo.store.migrate import open_store
from kneo.store.queue import DueRun

FLOODED = 1_000
SLOTS = 2
FLOOD, OTHER = "flood", "other"
STEPS = """
import time

def quick(text):
    time.sleep(0.02)
    return text

def counted(text):
    note("flood")
    time.sleep(0.1)
    return text

def other(text):
    note("other")
    return text
"""


def queue_of(**due: int) -> FairQueue:
    queue = FairQueue()
    for environment, number in due.items():
        for index in range(number):
            queue.add(DueRun(f"{environment}{index}", environment))
    return queue


def test_environments_take_turns() -> None:
    queue = queue_of(flood=1_000, other=2)
    assert [queue.take() for _ in range(5)] == ["flood0", "other0", "flood1", "other1", "flood2"]


def test_an_environment_with_a_slot_waits_for_one_without() -> None:
    queue = queue_of(flood=10)
    assert [queue.take() for _ in range(3)] == ["flood0", "flood1", "flood2"]
    queue.add(DueRun("other0", OTHER))
    queue.end("flood1")
    assert queue.take() == "other0"


def test_a_driven_run_stays_queued_until_its_driver_has_ended() -> None:
    queue = queue_of(flood=1)
    assert queue.take() == "flood0"
    queue.add(DueRun("flood0", FLOOD))
    assert queue.take() is None
    queue.end("flood0")
    assert queue.take() == "flood0"


def test_a_run_gives_way_to_an_environment_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(admission, "monotonic", lambda: now)
    queue = queue_of(flood=4)
    for _ in range(2):
        queue.take()
        now += 0.1
    assert queue.find_excess() is None, "no other environment waits"
    queue.add(DueRun("other0", OTHER))
    assert queue.find_excess() is None, "the slice of the first run is not over"
    now += 0.5
    assert queue.find_excess() == "flood0"
    queue.end("flood0")
    assert queue.take() == "other0"
    queue.add(DueRun("other1", OTHER))
    now += 1
    assert queue.find_excess() is None, "both environments have a slot"


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(request.getfixturevalue(request.param), SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", STEPS)
    store.close()


def test_a_flood_delays_the_first_run_of_another_environment_by_at_most_the_present_step_of_each_slot(
    engine: Engine,
) -> None:
    for _ in range(FLOODED):
        engine.start([step("counted")], environment=FLOOD)
    with background("worker", *_worker(engine)):
        eventually(lambda: len(engine.notes()) > 3 * SLOTS)
        other = engine.start([step("other")], environment=OTHER)
        # The flood's steps that begin after this note, and before the other environment's first one, had a slot already.
        before = len(engine.notes())
        eventually(lambda: _succeeded(engine, other))
    assert engine.notes().index("other") - before <= SLOTS


def test_a_run_of_many_steps_gives_way_between_them(engine: Engine) -> None:
    long = [
        engine.start([{**step("quick"), "id": f"s{number}"} for number in range(150)], environment=FLOOD)
        for _ in range(2)
    ]
    with background("worker", *_worker(engine)):
        eventually(lambda: engine.look(long[1]).step_count > 2)
        other = engine.start([step("quick")], environment=OTHER)
        assert eventually(lambda: _succeeded(engine, other))
        assert not any(_succeeded(engine, run) for run in long)


def test_each_environment_with_due_runs_is_listed_once(engine: Engine) -> None:
    begun = {name: engine.start([step("quick")], environment=name) for name in (FLOOD, OTHER, None)}
    engine.start([step("quick")], environment=FLOOD)
    with engine.store.read() as tx:
        found = runs.list_first_runnable(tx)
    assert {run.environment: run.id for run in found} == {name: run.id for name, run in begun.items()}


def _worker(engine: Engine) -> tuple[Callable[[], None], Callable[[], None]]:
    make = Worker if engine.store.is_sqlite else QueueWorker
    worker = make(engine.store, engine.driver(), concurrency=2)
    return worker.run, worker.stop


def _succeeded(engine: Engine, run: Run) -> bool:
    return engine.look(run).status is RunStatus.SUCCEEDED
