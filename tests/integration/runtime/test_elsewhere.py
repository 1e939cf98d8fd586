"""Runs whose code is an object of another program: nobody else drives them, and nobody fails them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from engine import Engine
from kneo_process import eventually
from run_simulator import AGENT

from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.start import StartRequest
from kneo.runtime.engine.worker import Worker
from kneo.runtime.steps.code import CodeUnavailable
from kneo.store.engine import Store


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", "def near(text): return text\n")


@pytest.fixture
def run(engine: Engine) -> Run:
    step = {"id": "far", "kind": "function", "ref": "far"}
    components = {"functions": {"far": {"implementation": "inprocess.far_1"}}}
    spec = {"agent": AGENT, "workflow": [step], "components": components}
    return engine.starter.start(StartRequest(input="in", requester="bob", spec=spec))


def test_it_is_said_and_the_run_stays_as_it_was(engine: Engine, run: Run) -> None:
    with pytest.raises(CodeUnavailable):
        engine.drive(run)
    now = engine.look(run)
    assert (now.status, now.owner, now.step_count) == (RunStatus.RUNNING, None, 0)


def test_a_worker_tries_it_once_and_goes_on_with_others(store: Store, engine: Engine, run: Run) -> None:
    if not store.is_sqlite:
        pytest.skip("on PostgreSQL a queue hands runs out, and this one is not put into it again")
    worker = Worker(store, engine.driver(), concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        for _ in range(3):
            near = engine.start([{"id": "near", "kind": "function", "ref": "near"}])
            eventually(lambda near=near: engine.look(near).status is RunStatus.SUCCEEDED)
    finally:
        worker.stop()
        thread.join()
    now = engine.look(run)
    assert (now.status, now.epoch) == (RunStatus.RUNNING, 1)
