"""What Kneo costs when there is much of everything: runs that are listed, runs that wait, a run that is long."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import insert, select

from benchmarks.engine import flows, peers
from kneo.clock import SystemClock, isoformat, new_id
from kneo.platform import PlatformManager
from kneo.settings import from_env
from kneo.store import runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import runs as runs_table
from kneo.store.tables import tasks as tasks_table

PAUSED = 10_000
MANY = (5_000, 100_000)


def measure() -> dict[str, dict[str, float]]:
    """Measure all of it, on SQLite."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{flows.MODULE}.py").write_text(flows.SOURCE)
        return {**listing(folder), "10,000 paused": paused(folder), "/livez while a long run executes": liveness()}


def listing(folder: Path) -> dict[str, dict[str, float]]:
    """List one page of runs out of few and of many."""
    found = {}
    store = _with_a_run(folder, "listing")
    for many in MANY:
        with store.read() as tx:
            have = runs.count_runs(tx)
        _copy(store, many - have, with_tasks=False)

        def page() -> None:
            with store.read() as tx:
                assert len(runs.list_runs(tx, limit=100)) == 100

        found[f"100 of {many:,} runs"] = _cost(page)
    store.close()
    return found


def paused(folder: Path) -> dict[str, float]:
    """Let very many runs wait: what a worker holds for them, how soon it is back, and how long the inbox takes."""
    store = _with_a_run(folder, "paused")
    before = _worker_memory(store)
    _copy(store, PAUSED - 1, with_tasks=True)
    after = _worker_memory(store)

    def inbox() -> None:
        with store.read() as tx:
            assert len(tasks.list_tasks(tx, limit=100)) == 100

    answer = {"memory_growth_mb": after["mb"] - before["mb"], "restart_seconds": after["seconds"]}
    answer |= {f"inbox_{name}": value for name, value in _cost(inbox).items()}
    store.close()
    return answer


def liveness() -> dict[str, float]:
    """Ask ``/livez`` all the time while a chain of a thousand steps executes."""
    with peers.kneo() as url, httpx.Client(base_url=url, timeout=120) as client, httpx.Client(base_url=url) as other:
        order = {"input": "x", "spec": flows.chain(1000), "target": "workflow"}
        running = threading.Thread(target=lambda: client.post("/v1/runs", json=order).raise_for_status())
        running.start()
        took = []
        while running.is_alive():
            started = time.perf_counter()
            assert other.get("/livez").status_code == 200
            took.append((time.perf_counter() - started) * 1000)
            time.sleep(0.005)
        running.join()
    took.sort()
    return {"p50_ms": took[len(took) // 2], "p99_ms": took[int(len(took) * 0.99)], "asked": float(len(took))}


def _with_a_run(folder: Path, name: str) -> Store:
    """Make a database with one run that waits for a person."""
    url = f"sqlite:///{folder}/{name}.sqlite"
    settings = replace(from_env({"HOME": str(folder)}, folder), database_url=url)
    with PlatformManager(settings=settings) as manager:
        assert manager.run_from_spec("x", spec=flows.asking()).status == "paused"
    return open_store(url, SystemClock())


def _copy(store: Store, times: int, *, with_tasks: bool) -> None:
    """Let there be more runs like the one that is there, with what it left behind and what it asks."""
    with store.write() as tx:
        run = dict(tx.connection.execute(select(runs_table)).mappings().first())
        task = dict(tx.connection.execute(select(tasks_table)).mappings().first())
        ids = [new_id("run", tx.now) for _ in range(times)]
        for start in range(0, times, 5_000):
            some = ids[start : start + 5_000]
            at = [isoformat(tx.now - timedelta(milliseconds=number)) for number in range(start, start + len(some))]
            rows = [run | {"id": one, "updated_at": when} for one, when in zip(some, at, strict=True)]
            tx.connection.execute(insert(runs_table), rows)
            if with_tasks:
                copies = [
                    task | {"id": new_id("cont", tx.now), "request_id": f"req_{one}", "run_id": one} for one in some
                ]
                tx.connection.execute(insert(tasks_table), copies)


WORKER = """
import json, sys, threading, time
from kneo.clock import SystemClock
from kneo.runtime.engine.assemble import working
from kneo.settings import from_env
from kneo.store.migrate import open_store
started = time.perf_counter()
store = open_store(sys.argv[1], SystemClock())
with working(from_env({"HOME": "/nonexistent"}), store, 4):
    with store.read() as tx:
        seconds = time.perf_counter() - started
    time.sleep(2.5)
    resident = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
store.close()
print(json.dumps({"seconds": seconds, "mb": resident / 1024}))
"""


def _worker_memory(store: Store) -> dict[str, float]:
    url = store.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", WORKER, url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _cost(work: Callable[[], None], times: int = 30) -> dict[str, float]:
    """Do something many times; the middle one's time, and the processor's time for each."""
    took = []
    cpu = time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return {"ms": sorted(took)[times // 2] * 1000, "cpu_ms": (time.process_time() - cpu) / times * 1000}
