"""Many runs at once that each wait two seconds in an async step, on one worker: ``python -m benchmarks.engine.waiting``.

Prints JSON: seconds until the last run has ended, the most threads of the process, and its peak memory in megabytes.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.engine import flows
from kneo.platform import PlatformManager
from kneo.records.run import RunStatus
from kneo.settings import from_env
from kneo.store import runs
from kneo.store.run_filter import RunFilter

WAIT_SECONDS = 2.0


def main(count: int) -> dict[str, float]:
    """Start runs and wait for all of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{flows.MODULE}.py").write_text(flows.SOURCE)
        with PlatformManager(settings=from_env({"HOME": name}, folder)) as manager:
            manager.start_worker(count)
            tree = flows.waiting()
            started, cpu, threads = time.perf_counter(), time.process_time(), 0
            for _ in range(count):
                manager.start_run_from_spec(str(WAIT_SECONDS), spec=tree)
                threads = max(threads, threading.active_count())
            done = 0
            while done < count:
                time.sleep(0.05)
                threads = max(threads, threading.active_count())
                with manager.store.read() as tx:
                    done = runs.count_runs(tx, RunFilter(statuses={RunStatus.SUCCEEDED}))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "threads": float(threads), "megabytes": memory}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1])["runs"])))
