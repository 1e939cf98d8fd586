"""Many agents that all wait at the same time, two seconds longer than the last of them, for their model, on one worker: ``python -m benchmarks.agents.waiting``.

Prints JSON: seconds until the last run has ended, the most threads of the process, and its peak memory in megabytes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.agents.kneo_turns import SOURCE, spec
from kneo.platform import PlatformManager
from kneo.records.run import RunStatus
from kneo.settings import from_env
from kneo.store import runs
from kneo.store.run_filter import RunFilter


def main(url: str, count: int) -> dict[str, float]:
    """Start runs and wait for all of them."""
    os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": url}  # noqa: TID251 - what an operator does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_tools.py").write_text(SOURCE)
        settings = from_env({"HOME": name, "KNEO_SERV_MODEL_CONCURRENCY": str(count)}, folder)
        with PlatformManager(settings=settings) as manager:
            manager.start_worker(count)
            tree = spec(0)
            manager.run_from_spec("Warm up.", spec=spec(1), target="agent")
            started, cpu, threads = time.perf_counter(), time.process_time(), 0
            for _ in range(count):
                manager.start_run_from_spec("Begin.", spec=tree, target="agent")
                threads = max(threads, threading.active_count())
            done = 0
            while done <= count:
                time.sleep(0.05)
                threads = max(threads, threading.active_count())
                with manager.store.read() as tx:
                    done = runs.count_runs(tx, RunFilter(statuses={RunStatus.SUCCEEDED}))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "threads": float(threads), "megabytes": memory}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["runs"])))
