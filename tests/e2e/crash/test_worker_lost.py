"""A run whose step kills its worker: it ends after three deaths, and the runs of the same worker go on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually
from warm import start_python

from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import continue_run
from kneo.settings import process_environment
from kneo.store import runs
from kneo.store.migrate import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200), pytest.mark.both_databases]

SOURCE = """
import signal
def poison(text, context):
    note(f"poison of {os.getpid()}")
    if not LOG.with_suffix(".cured").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "cured"
def slow(text, context):
    # Long enough to be under way at the first two deaths.
    while not LOG.exists() or len(LOG.read_text().splitlines()) < 2:
        time.sleep(0.02)
    return text
def quick(text, context):
    return text
"""


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


class Workers:
    """Worker processes of which a new one is started for each that died."""

    def __init__(self, engine: Engine, url: str, until: Run, count: int) -> None:
        """Start workers, which stop when the run ``until`` ends."""
        self._engine, self._url, self._until = engine, url, until
        self._alive = [self._start() for _ in range(count)]
        self.died = 0

    def _start(self) -> subprocess.Popen[bytes]:
        crashing = Path(__file__).with_name("crashing.py")
        folder = str(self._engine.log.parent)
        # A function that runs in the worker, which kills it; in a sandbox it kills its own process alone.
        inside = {**process_environment(), "KNEO_SERV_TOOLS_SANDBOX": "none"}
        return start_python([sys.executable, str(crashing), self._url, folder, self._until.id, "0"], env=inside)

    def replace_dead(self) -> None:
        for ended in [process for process in self._alive if process.poll() is not None]:
            self._alive.remove(ended)
            self.died += ended.returncode != 0
            self._alive.append(self._start())

    def stop(self) -> None:
        for process in self._alive:
            process.kill()
            process.wait()


def suspects(engine: Engine) -> tuple[tuple[str, RunStatus], ...]:
    with engine.store.read() as tx:
        return runs.list_suspects(tx, 10)


def ended(engine: Engine, workers: Workers, run: Run) -> Run:
    def look() -> Run | None:
        workers.replace_dead()
        now = engine.look(run)
        return now if now.status.is_final else None

    return eventually(look, seconds=60)


def test_a_run_that_kills_its_workers_ends(engine: Engine, migrated_url: str) -> None:
    poisonous = engine.start([step("before", "quick"), step("bad", "poison"), step("after", "quick")])
    honest = [engine.start([step("long", "slow"), step("b", "quick")]) for _ in range(2)]
    waiting = engine.start([{"id": "ask", "kind": "human", "ref": "ann"}])
    workers = Workers(engine, migrated_url, waiting, 1 if engine.store.is_sqlite else 2)
    try:
        lost = ended(engine, workers, poisonous)
        assert (lost.status, lost.error and lost.error.type) == (RunStatus.FAILED, "worker_lost")
        assert "bad" in lost.error.message
        assert workers.died == 3
        assert len(set(engine.notes())) == len(engine.notes()) == 3
        for run in honest:
            assert ended(engine, workers, run).status is RunStatus.SUCCEEDED
        assert workers.died == 3
        # The results of the others ended their suspicion.
        eventually(lambda: suspects(engine) == ((poisonous.id, RunStatus.FAILED),))
    finally:
        workers.stop()


def test_a_run_that_lost_its_workers_can_be_continued(engine: Engine, migrated_url: str) -> None:
    run = engine.start([step("bad", "poison"), step("after", "quick")])
    workers = Workers(engine, migrated_url, run, 1)
    try:
        assert ended(engine, workers, run).error.type == "worker_lost"
        engine.log.with_suffix(".cured").touch()
        continue_run(engine.store, ProgramLoader(engine.store), run.id, actor="ann")
        assert ended(engine, workers, run).output_text == "cured"
    finally:
        workers.stop()
