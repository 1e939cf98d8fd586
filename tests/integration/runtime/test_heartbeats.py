"""A worker whose loops hang is not alive; one that works, is busy or cannot reach the database is."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from engine import Engine, step
from kneo_process import Machine, eventually
from processes import free_port
from prometheus_client import CollectorRegistry, generate_latest

from kneo.background import background
from kneo.cli.serve.worker import measured
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import LockedWorker, worker_on
from kneo.runtime.engine.timers import run_timers
from kneo.runtime.engine.worker import LATE_SECONDS, Heartbeats
from kneo.store.engine import WORKER_LOCK, Store

STEPS = """
async def stuck(text):
    note("stuck")
    while not LOG.with_name("gate").exists():
        time.sleep(0.02)  # blocks the event loop
    return text
"""


class Beats:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_loop_that_has_no_turn_in_time_hangs() -> None:
    now = [100.0]
    beats = Heartbeats(lambda: now[0])
    now[0] += LATE_SECONDS
    assert beats.is_alive()
    now[0] += 1
    assert not beats.is_alive()
    beats.steps.beat()
    assert not beats.is_alive(), "the timers hang"
    beats.timers.beat()
    assert beats.is_alive()
    assert beats.ages() == {"steps": 0.0, "timers": 0.0}


def test_a_function_that_blocks_the_event_loop_stops_the_heartbeat(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kneo.runtime.engine.timers.IDLE_SECONDS", 0.05)
    engine = Engine(store, tmp_path / "code", STEPS)
    beats, ticks, stopping = Beats(), Beats(), threading.Event()
    worker = worker_on(store, engine.driver(), concurrency=2, beat=beats)
    with (
        background("worker", worker.run, worker.stop),
        background("timers", lambda: run_timers(store, stopping, ticks), stopping.set),
    ):
        eventually(lambda: beats.count > 2)
        run = engine.start([step("stuck")])
        eventually(engine.notes)
        blocked, before = beats.count, ticks.count
        assert worker.busy == 1
        eventually(lambda: ticks.count > before + 30)
        assert beats.count == blocked
        engine.log.with_name("gate").touch()
        eventually(lambda: engine.look(run).status is RunStatus.SUCCEEDED)
        eventually(lambda: beats.count > blocked + 2)


def test_the_metrics_of_a_worker(store: Store, tmp_path: Path) -> None:
    engine, registry = Engine(store, tmp_path / "code", STEPS), CollectorRegistry()
    with store.shared(WORKER_LOCK) as lock:
        worker = LockedWorker(lock, lambda beat: worker_on(store, engine.driver(), concurrency=3, beat=beat))
        with measured(worker, registry):
            text = generate_latest(registry).decode()
        assert "kneo_worker_slots 3.0" in text
        assert "kneo_worker_busy_slots 0.0" in text
        assert 'kneo_worker_heartbeat_age_seconds{loop="timers"}' in text
        assert generate_latest(registry) == b""


@pytest.mark.e2e
def test_a_worker_process_serves_probes(sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()
    machine = Machine(tmp_path, sqlite_url, KNEO_SERV_METRICS_PORT=str(port))
    process = machine.start("worker", "--concurrency", "2", answers=False)
    try:

        def answered() -> httpx.Response | None:
            assert process.popen.poll() is None, process.log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=240)
            except httpx.ConnectError:
                return None

        alive = eventually(answered)
        assert (alive.status_code, alive.text) == (200, "ok\n")
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=240).text
        assert "kneo_worker_slots 2.0" in metrics
        assert process.terminate() == 0
    finally:
        machine.stop()
