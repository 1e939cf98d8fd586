"""Runs that a real Temporal server hands to real workers. Behind ``make temporal``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import temporal_server
from engine import Engine, step
from installation_key import find_key
from kneo_process import Machine, Process, eventually
from processes import free_port

from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.store import history
from kneo.store.migrate import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SOURCE = """
def effect(text, context):
    # What a careful function does with its key: the same effect again is no effect.
    if context.idempotency_key not in (LOG.read_text().splitlines() if LOG.exists() else []):
        note(context.idempotency_key)
    return f"{text}>{context.step_id}"
def slow(text, context):
    with LOG.with_suffix(".begun").open("a") as begun:
        begun.write("begun\\n")
    # The first attempt waits for a gate of its own, each later one for another gate.
    gate = ".first" if len(LOG.with_suffix(".begun").read_text().splitlines()) == 1 else ".later"
    result = effect(text, context)
    while not LOG.with_suffix(gate).exists():
        time.sleep(0.02)
    return result
def lasting(text, context):
    with LOG.with_suffix(".begun").open("a") as begun:
        begun.write("begun\\n")
    # Long enough for a signal to reach the process; no test can see when it has.
    time.sleep(8)
    return effect(text, context)
"""
ASK = {"id": "ask", "kind": "human", "ref": "ann"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not request.config.getoption("--temporal", default=False):
        pytest.skip("needs a Temporal server: make temporal")
    try:
        with temporal_server.serving(tmp_path_factory.mktemp("temporal") / "server.log") as address:
            yield address
    except temporal_server.NoServer as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(postgres_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(postgres_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "machine", SOURCE)
    store.close()


@pytest.fixture
def machine(server: str, engine: Engine, postgres_url: str, tmp_path: Path) -> Iterator[Machine]:
    variables = {"KNEO_SERV_DISPATCH": "temporal", "KNEO_SERV_TEMPORAL_ADDRESS": server}
    made = Machine(tmp_path / "machine", postgres_url, **variables)
    yield made
    made.stop()


def open_gate(engine: Engine, attempt: str) -> None:
    """Let the first attempt at the step ``slow``, or the later ones, go on."""
    engine.log.with_suffix(f".{attempt}").touch()


def worker(machine: Machine) -> Process:
    return machine.start("worker", answers=False)


def done(engine: Engine, run: Run) -> Run:
    ended = eventually(lambda: (now := engine.look(run)).status not in {"running", "paused"} and now)
    assert ended.status is RunStatus.SUCCEEDED, ended.error
    with engine.store.read() as tx:
        keys = [each.idempotency_key for each in history.list_steps(tx, run.id) if each.kind == "function"]
    assert len(set(keys)) == len(keys), "a step was committed twice"
    assert sorted(engine.notes()) == sorted(keys), "effects and committed steps differ"
    return ended


def test_a_run_waits_for_a_person_and_goes_on(engine: Engine, machine: Machine) -> None:
    process = worker(machine)
    run = engine.start([step("a", "effect"), ASK, step("b", "effect")])
    (task,) = eventually(lambda: engine.look(run).status is RunStatus.PAUSED and engine.open(run))
    engine.answer(task, "approved")
    assert done(engine, run).output_text.endswith(">b")
    assert process.terminate() == 0, process.log.read_text()


def test_a_dead_workers_run_is_taken_over(engine: Engine, machine: Machine, server: str) -> None:
    begun = engine.log.with_suffix(".begun")
    first = worker(machine)
    run = engine.start([step("long", "slow"), step("b", "effect")])
    eventually(begun.exists)
    second = worker(machine)
    eventually(lambda: any(str(second.popen.pid) in each for each in temporal_server.pollers(server, "kneo-runs")))
    first.kill()
    open_gate(engine, "later")
    killed = time.monotonic()
    eventually(lambda: len(begun.read_text().splitlines()) >= 2)
    print(f"taken over after {time.monotonic() - killed:.1f} s")
    assert done(engine, run).epoch >= 2, "a heartbeat that is late on a busy machine costs another attempt"
    assert second.terminate() == 0, second.log.read_text()


def test_a_worker_that_is_stopped_finishes_its_step_and_leaves_the_rest(engine: Engine, machine: Machine) -> None:
    begun = engine.log.with_suffix(".begun")
    first = worker(machine)
    run = engine.start([step("long", "lasting"), step("b", "effect")])
    eventually(begun.exists)
    assert first.terminate() == 0, first.log.read_text()
    assert engine.steps(run) == [("long", "completed")]
    worker(machine)
    done(engine, run)


def test_what_a_worker_that_hung_brings_late_is_discarded(engine: Engine, machine: Machine) -> None:
    begun = engine.log.with_suffix(".begun")
    hung = worker(machine)
    run = engine.start([step("long", "slow"), step("b", "effect")])
    eventually(begun.exists)
    hung.popen.send_signal(signal.SIGSTOP)
    worker(machine)
    eventually(lambda: len(begun.read_text().splitlines()) >= 2)
    hung.popen.send_signal(signal.SIGCONT)
    open_gate(engine, "first")
    assert hung.terminate() == 0, hung.log.read_text()
    now = engine.look(run)
    assert (now.status, engine.steps(run)) == (RunStatus.RUNNING, []), (
        "another worker has the run, and its result counts"
    )
    open_gate(engine, "later")
    assert done(engine, run).epoch >= 2


def test_a_server_that_lost_everything_is_told_again(engine: Engine, postgres_url: str, tmp_path: Path, server: str):
    port = free_port()
    variables = {"KNEO_SERV_DISPATCH": "temporal", "KNEO_SERV_TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}
    machine = Machine(tmp_path / "machine", postgres_url, **variables)
    begun = engine.log.with_suffix(".begun")
    first = worker(machine)
    try:
        early = engine.start([step("long", "slow"), step("b", "effect")])
        with temporal_server.serving(tmp_path / "first.log", port):
            eventually(begun.exists)
        first.kill()
        open_gate(engine, "later")
        second = worker(machine)
        late = engine.start([step("c", "effect")])
        with temporal_server.serving(tmp_path / "second.log", port):
            for run in (early, late):
                eventually(lambda run=run: engine.look(run).status is RunStatus.SUCCEEDED)
            assert len(set(engine.notes())) == len(engine.notes()) == 3
            assert second.terminate() == 0, second.log.read_text()
    finally:
        machine.stop()
