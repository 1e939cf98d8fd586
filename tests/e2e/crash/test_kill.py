"""Kill -9 at each write of a run: every effect happens once, the run ends, and nothing acknowledged is missing.

A sample of the writes here; all of them with ``make crash``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import ENVIRONMENT, declare
from installation_key import find_key
from kneo_process import eventually
from sqlalchemy import text
from warm import start_python

from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine import quotas
from kneo.settings import process_environment
from kneo.store import history, queue, runs, tasks
from kneo.store.migrate import open_store
from kneo.tasks.decisions import decision_from_value
from kneo.tasks.inbox import decide

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

SOURCE = """
import fcntl
def effect(text, context):
    # What a careful function does with its key: the same effect again is no effect.
    with LOG.open("a+") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        if context.idempotency_key not in log.read().splitlines():
            log.write(context.idempotency_key + "\\n")
    return f"{text}>{context.step_id}"
def flaky(text, context):
    if context.attempt == 0:
        raise ValueError("at first")
    return effect(text, context)
def asking(text, context):
    first, second = context.wait("Go on?"), context.wait("Sure?", name="sure")
    return effect(f"{text}|{first}{second}", context)
def slow(text, context):
    result = effect(text, context)
    # Until the test opens the gate: after it has killed or stopped the process.
    while not LOG.with_suffix(".go").exists():
        time.sleep(0.02)
    return result
"""


def act(name: str, **more: object) -> dict[str, object]:
    return step(name, "effect", **more)


ASK = {"id": "ask", "kind": "human", "ref": "ann"}
CHOICES = {"x": {"steps": [act("x1")]}, "y": {"steps": [act("y1"), act("y2")]}}
EDGES = [
    {"from": "a", "to": "ask"},
    {"from": "ask", "to": "b"},
    {"from": "b", "to": "a", "condition": {"not": {"type": "output_contains", "value": "b>a"}}},
]
FLOWS: dict[str, object] = {
    "sequential": [act("a"), ASK, act("b"), step("c", "flaky", max_retries=1)],
    "concurrent": {"type": "concurrent", "participants": [act("a"), act("b"), ASK, {**ASK, "id": "too"}]},
    "handoff": {
        "type": "handoff",
        "participants": [act("a"), ASK, act("b")],
        "selector": {"sequence": ["a", "ask", "b", "a"]},
    },
    "group-chat": {"type": "group-chat", "participants": [act("a"), ASK], "rounds": 2},
    "graph": {"type": "graph", "start": "a", "nodes": {"a": act("a"), "ask": ASK, "b": act("b")}, "edges": EDGES},
    "containers": [
        {"id": "p", "kind": "parallel", "steps": [{"id": "s", "kind": "steps", "steps": [act("a"), ASK]}, act("b")]},
        {"id": "l", "kind": "loop", "steps": [act("c")], "max_iterations": 2},
        {"id": "r", "kind": "router", "choices": CHOICES, "selector": {"default": "y"}},
    ],
    "waiting": [act("a"), step("w", "asking"), act("b")],
    "reviewed": [act("a", review={"before": True, "after": {"human": "ann", "on_reject": "retry"}}), act("b")],
}
SAMPLED = {"sequential": (2, 5), "concurrent": (3,), "containers": (4,), "reviewed": (3,)}
MOST_WRITES = 60

PATIENCE_SECONDS = 600
"""For one run; starting a process alone may take many seconds on a busy machine."""


def cases(config: pytest.Config) -> list[tuple[str, int]]:
    if config.getoption("--every-write", default=False):
        return [(flow, 0) for flow in FLOWS]
    return [(flow, number) for flow, numbers in SAMPLED.items() for number in numbers]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "die_at" in metafunc.fixturenames:
        metafunc.parametrize(("flow", "die_at"), cases(metafunc.config))


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


class Processes:
    """The processes that execute steps."""

    def __init__(self, engine: Engine, url: str, run: Run, **variables: str) -> None:
        self.engine, self.url, self.run, self.variables = engine, url, run, variables
        self.alive: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def start(self, die_at: int = 0) -> subprocess.Popen[bytes]:
        folder = str(self.engine.log.parent)
        crashing = Path(__file__).with_name("crashing.py")
        command = [sys.executable, str(crashing), self.url, folder, self.run.id, str(die_at)]
        process = start_python(command, env={**process_environment("PATH", "HOME", "TMPDIR"), **self.variables})
        self.alive.append(process)
        return process

    def reap(self) -> None:
        for process in [process for process in self.alive if process.poll() is not None]:
            self.alive.remove(process)
            assert process.returncode in {0, -signal.SIGKILL}
            self.killed += process.returncode == -signal.SIGKILL

    def stop(self) -> None:
        for process in self.alive:
            process.kill()
            process.wait()


def go_through(engine: Engine, url: str, flow: str, die_at: int) -> tuple[Run, int]:
    """Run to the end with a process that dies at a write, and whatever process is there afterwards."""
    run = engine.start(FLOWS[flow])
    processes = Processes(engine, url, run)
    acknowledged: list[str] = []
    try:
        processes.start(die_at)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := engine.look(run)).status in {RunStatus.RUNNING, RunStatus.PAUSED}:
            assert time.monotonic() < deadline, (flow, die_at, now)
            for task in engine.open(run):
                if now.status is RunStatus.PAUSED:
                    decide(engine.store, task.id, decision_from_value(task, True), actor="ann")
                    acknowledged.append(task.id)
            processes.reap()
            if not processes.alive:
                processes.start()
            time.sleep(0.02)
        processes.reap()
        check(engine, now, acknowledged)
    finally:
        processes.stop()
    return now, processes.killed


def check(engine: Engine, run: Run, acknowledged: list[str]) -> None:
    assert run.status is RunStatus.SUCCEEDED, run.error
    with engine.store.read() as tx:
        done = [
            item for item in history.list_steps(tx, run.id) if item.status == "completed" and item.kind == "function"
        ]
        answered = [tasks.get(tx, task_id) for task_id in acknowledged]
    keys = [item.idempotency_key for item in done]
    assert len(set(keys)) == len(keys), "a step was committed twice"
    assert sorted(engine.notes()) == sorted(keys), "effects and committed steps differ"
    assert all(task is not None and task.status is TaskStatus.APPLIED for task in answered)
    assert len(set(acknowledged)) == len(acknowledged), "somebody was asked again"


@pytest.mark.both_databases
def test_every_effect_happens_once(engine: Engine, migrated_url: str, flow: str, die_at: int) -> None:
    if die_at:
        go_through(engine, migrated_url, flow, die_at)
        return
    for number in range(1, MOST_WRITES):
        engine.log.unlink(missing_ok=True)
        _, killed = go_through(engine, migrated_url, flow, number)
        if not killed:
            assert number > 4
            return
    pytest.fail(f"{flow} still wrote after {MOST_WRITES} writes")


def open_gate(engine: Engine) -> None:
    engine.log.with_suffix(".go").touch()


def workers(engine: Engine) -> set[int]:
    with engine.store.read() as tx:
        return set(tx.connection.execute(text(f"SELECT id FROM {queue.SCHEMA}.procrastinate_workers")).scalars())


def test_a_dead_workers_run_is_taken_over_in_time(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE)
    run = engine.start([step("long", "slow"), act("b")])
    processes = Processes(engine, postgres_url, run)
    try:
        first = processes.start()
        eventually(engine.notes)
        processes.start()
        known = workers(engine)
        eventually(lambda: known.update(workers(engine)) or len(known) >= 2)
        first.kill()
        open_gate(engine)
        # Under six seconds on a machine with nothing else to do; here only that nobody has to help.
        eventually(lambda: engine.look(run).epoch >= 2)
        done = eventually(lambda: (now := engine.look(run)).status is RunStatus.SUCCEEDED and now)
        check(engine, done, [])
    finally:
        processes.stop()
        store.close()


@pytest.mark.both_databases
def test_the_runs_of_a_killed_worker_count_for_their_quota_until_another_one_has_ended_them(
    engine: Engine, migrated_url: str
) -> None:
    until = engine.start([ASK])
    declare(engine.store, inlineSpecs=True, quotas={"running": 2})
    begun = [engine.start([step("long", "slow"), act("b")], environment=ENVIRONMENT) for _ in range(5)]
    processes, most = Processes(engine, migrated_url, until), 0

    def driven() -> int:
        nonlocal most
        with engine.store.read() as tx:
            number = runs.count_driven(tx, ENVIRONMENT, 100)
        most = max(most, number)
        return number

    try:
        first = processes.start()
        eventually(lambda: driven() == len(engine.notes()) == 2)
        first.kill()
        first.wait()
        processes.start()
        open_gate(engine)
        eventually(lambda: driven() == 0 and all(engine.look(run).status is RunStatus.SUCCEEDED for run in begun))
        assert most == 2
        assert len(engine.notes()) == len(set(engine.notes())) == 2 * len(begun), "an effect for each step, once"
        with engine.store.read() as tx:
            assert quotas.count_free(tx, ENVIRONMENT) == 2
    finally:
        processes.stop()


def silence(engine: Engine, worker_id: int) -> float:
    """Return since when a worker has given no sign of life, in seconds."""
    age = f"SELECT extract(epoch FROM now() - last_heartbeat) FROM {queue.SCHEMA}.procrastinate_workers WHERE id = :id"
    with engine.store.read() as tx:
        return float(tx.connection.execute(text(age), {"id": worker_id}).scalar_one())


def test_a_worker_that_is_stopped_for_seconds_keeps_its_runs(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE)
    run = engine.start([step("long", "slow"), act("b")])
    processes = Processes(engine, postgres_url, run)
    try:
        slow = processes.start()
        eventually(engine.notes)
        (slow_id,) = workers(engine)
        slow.send_signal(signal.SIGSTOP)
        processes.start()
        (other_id,) = eventually(lambda: workers(engine) - {slow_id})
        eventually(lambda: silence(engine, slow_id) > 6 and silence(engine, other_id) < 3)
        assert engine.look(run).epoch == 1
        slow.send_signal(signal.SIGCONT)
        open_gate(engine)
        done = eventually(lambda: (now := engine.look(run)).status is RunStatus.SUCCEEDED and now)
        check(engine, done, [])
        assert done.epoch == 1, "no other worker executed the run"
    finally:
        processes.stop()
        store.close()


def test_what_a_stopped_worker_brings_late_is_discarded(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE)
    run = engine.start([step("a", "slow"), act("b")])
    processes = Processes(engine, postgres_url, run, KNEO_SERV_WORKER_STALL_SECONDS="4")
    try:
        zombie = processes.start()
        eventually(engine.notes)
        zombie.send_signal(signal.SIGSTOP)
        open_gate(engine)
        processes.start()
        done = eventually(lambda: (now := engine.look(run)).status is RunStatus.SUCCEEDED and now)
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(PATIENCE_SECONDS) == 0
        check(engine, done, [])
        assert engine.look(run) == done
    finally:
        processes.stop()
        store.close()
