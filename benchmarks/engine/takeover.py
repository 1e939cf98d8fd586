"""How long a run waits for another worker after its own was killed or stopped: two ``kneo worker`` on one PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from benchmarks.engine import flows
from kneo.clock import SystemClock
from kneo.platform import Database, PlatformManager
from kneo.settings import from_env
from kneo.store.migrate import open_store
from kneo.trust.keys import PrivateKey

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from databases import start_server

ROOT = Path(__file__).parents[2]
TIMES = 3
LONG_SECONDS = 60

MARKING = """
import os, time
from pathlib import Path
MARKS = Path(__file__).with_name("marks")
def long(text):
    with MARKS.open("a") as marks:
        marks.write(f"{os.getpid()}\\n")
    time.sleep(%d)
    return text
"""


def measure() -> dict[str, dict[str, float]]:
    """Kill a worker in the middle of a step, and stop one, each some times; seconds until the other began that step."""
    server = start_server()
    try:
        return {
            how: {"seconds_worst": max(took), "seconds_best": min(took)}
            for how, number in (("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP))
            if (took := [_once(server.url(server.create()), number) for _ in range(TIMES)])
        }
    finally:
        server.stop()


def _once(url: str, number: signal.Signals) -> float:
    open_store(url, SystemClock()).close()
    key = PrivateKey.generate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "marking.py").write_text(MARKING % LONG_SECONDS)
        marks = folder / "marks"
        env = {"PATH": os.defpath, "HOME": name, "PYTHONPATH": str(ROOT), "KNEO_SERV_DATABASE_URL": url}
        env["KNEO_SERV_SERVICE_KEY"] = key.dump().decode()
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "kneo.cli.main", "worker"], cwd=name, env=env, stderr=subprocess.DEVNULL
            )
            for _ in "ab"
        ]
        try:
            with PlatformManager(None, Database(url, lambda: key), settings=from_env(env, folder)) as manager:
                spec = flows.spec(flows.step("long", "long"))
                spec["components"] = {"functions": {"long": {"implementation": "marking.long"}}}
                _until(lambda: _registered(manager) == 2)
                manager.start_run_from_spec("x", spec=spec)
                _until(marks.is_file)
                first = int(marks.read_text().split()[0])
                os.kill(first, number)
                started = time.perf_counter()
                _until(lambda: len(marks.read_text().split()) > 1)
                return time.perf_counter() - started
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def _registered(manager: PlatformManager) -> int:
    with manager.store.read() as tx:
        return tx.connection.execute(text("SELECT count(*) FROM kneo_queue.procrastinate_workers")).scalar_one()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
