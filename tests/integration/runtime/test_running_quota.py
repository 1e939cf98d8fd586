"""The quota ``running``: a run beyond it waits, begins when another one of its environment ends, and delays no other environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import declare
from installation_key import find_key
from kneo_process import eventually

from kneo.background import background
from kneo.clock import SystemClock
from kneo.records.run import Run, RunError, RunStatus
from kneo.runtime.dispatch.postgres import QueueWorker
from kneo.runtime.engine import admission, quotas
from kneo.runtime.engine.admission import FairQueue
from kneo.runtime.engine.worker import Worker
from kneo.store import runs
from kneo.store.migrate import open_store
from kneo.store.queue import DueRun

LIMITED, OTHER = "prod", "other"
STEPS = """
LOCK, NOW = threading.Lock(), []

def counted(text):
    with LOCK:
        NOW.append(text)
        note(str(len(NOW)))
    time.sleep(0.02)
    with LOCK:
        NOW.remove(text)
    return text

def held(text):
    note("held")
    go = LOG.with_suffix(".go")
    while not go.exists():
        time.sleep(0.01)
    return text

def quick(text):
    note("quick")
    return text
"""
HUMAN = {"id": "check", "kind": "human", "ref": "ann"}


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(request.getfixturevalue(request.param), SystemClock(), find_key)
    made = Engine(store, tmp_path / "code", STEPS)
    yield made
    open_gate(made)
    store.close()


@contextmanager
def working(engine: Engine, concurrency: int = 4) -> Iterator[None]:
    """Run a worker, and a second one where a database can have two."""
    with ExitStack() as ends:
        for index in range(1 if engine.store.is_sqlite else 2):
            make = Worker if engine.store.is_sqlite else QueueWorker
            worker = make(engine.store, engine.driver(), concurrency=concurrency)
            ends.enter_context(background(f"worker {index}", worker.run, worker.stop))
        yield


def open_gate(engine: Engine) -> None:
    engine.log.with_suffix(".go").touch()


def limit(engine: Engine, number: int) -> None:
    declare(engine.store, inlineSpecs=True, quotas={"running": number})
    declare(engine.store, environment=OTHER, inlineSpecs=True)


def start(engine: Engine, name: str, environment: str = LIMITED) -> Run:
    return engine.start([step(name)], environment=environment)


def succeeded(engine: Engine, run: Run) -> bool:
    return engine.look(run).status is RunStatus.SUCCEEDED


def driven(engine: Engine) -> int:
    with engine.store.read() as tx:
        return runs.count_driven(tx, LIMITED, 100)


def test_no_more_runs_are_driven_at_the_same_time_and_all_end(engine: Engine) -> None:
    limit(engine, 2)
    begun = [start(engine, "counted") for _ in range(30)]
    with working(engine):
        eventually(lambda: all(succeeded(engine, run) for run in begun))
    assert len(engine.notes()) == 30
    assert set(engine.notes()) <= {"1", "2"}


def test_a_run_beyond_the_quota_waits_and_delays_no_other_environment(engine: Engine) -> None:
    limit(engine, 1)
    first = start(engine, "held")
    with working(engine, concurrency=2):
        eventually(lambda: engine.notes() == ["held"])
        waiting = [start(engine, "quick") for _ in range(20)]
        other = start(engine, "quick", OTHER)
        eventually(lambda: succeeded(engine, other))
        assert (driven(engine), engine.notes()) == (1, ["held", "quick"])
        assert all(engine.look(run).status is RunStatus.RUNNING for run in waiting)
        open_gate(engine)
        eventually(lambda: all(succeeded(engine, run) for run in (first, *waiting)))


def test_a_run_that_waits_for_people_does_not_count(engine: Engine) -> None:
    limit(engine, 1)
    asking = engine.start([HUMAN, step("quick")], environment=LIMITED)
    with working(engine):
        eventually(lambda: engine.look(asking).status is RunStatus.PAUSED)
        other = start(engine, "held")
        eventually(lambda: engine.notes() == ["held"])
        (task,) = engine.open(asking)
        engine.answer(task, "approved")
        eventually(lambda: engine.look(asking).status is RunStatus.RUNNING)
        assert engine.notes() == ["held"]
        open_gate(engine)
        eventually(lambda: succeeded(engine, asking) and succeeded(engine, other))


def test_a_cancelled_run_frees_its_place(engine: Engine) -> None:
    limit(engine, 1)
    first = start(engine, "held")
    with working(engine):
        eventually(lambda: engine.notes() == ["held"])
        second = start(engine, "quick")
        cause = RunError(type="cancelled", message="Cancelled.")
        with engine.store.write() as tx:
            assert quotas.count_free(tx, LIMITED) == 0
            runs.end(tx, first.id, RunStatus.CANCELLED, cause, allowed=[RunStatus.RUNNING])
            assert quotas.count_free(tx, LIMITED) == 1
        open_gate(engine)
        eventually(lambda: succeeded(engine, second))


def test_the_place_of_a_dead_driver_is_free_once_its_run_is_taken_over(engine: Engine) -> None:
    limit(engine, 1)
    dead, waiting = start(engine, "quick"), start(engine, "quick")
    with engine.store.write() as tx:
        assert runs.acquire(tx, dead.id, "job_1") is not None
    assert engine.drive(waiting).status is RunStatus.RUNNING
    with working(engine):
        eventually(lambda: succeeded(engine, dead) and succeeded(engine, waiting))
    assert engine.notes() == ["quick", "quick"]


def test_a_full_environment_is_passed_over_until_one_of_its_runs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(admission, "monotonic", lambda: now)
    queue = FairQueue()
    for index in range(3):
        queue.add(DueRun(f"full{index}", "full"))
    assert [queue.take(), queue.take()] == ["full0", "full1"]
    queue.end("full1", is_full=True)
    assert queue.take() is None
    queue.add(DueRun("other0", OTHER))
    assert queue.take() == "other0"
    now = 0.1
    queue.end("full0")
    assert queue.take() == "full1", "it is the first again"
    queue.end("full1", is_full=True)
    now += admission.FULL_SECONDS
    assert queue.take() == "full1", "the file may allow more by now"


def test_a_refusal_that_an_end_has_overtaken_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(admission, "monotonic", lambda: now)
    queue = FairQueue()
    for index in range(2):
        queue.add(DueRun(f"full{index}", "full"))
    queue.take(), queue.take()
    now = 0.1
    queue.end("full0")
    queue.end("full1", is_full=True)
    assert queue.take() == "full1"
