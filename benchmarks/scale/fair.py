"""How long the first run of an environment waits while another one has queued thousands, on both databases.

    python -m benchmarks.scale.fair --runs 10000

The wait is compared with a step of the flood: each slot of the worker may end the step that it has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually

from benchmarks.scale.populate import report
from kneo.background import background
from kneo.clock import SystemClock
from kneo.runtime.dispatch.postgres import QueueWorker
from kneo.runtime.engine.worker import Worker
from kneo.store.migrate import open_store

SLOTS, STEP_SECONDS = 4, 0.5
STEPS = f"""
def counted(text):
    note("flood")
    time.sleep({STEP_SECONDS})
    return text

def other(text):
    note(f"other {{time.time()}}")
    return text
"""


def measure(url: str, folder: Path, count: int) -> tuple[int, float]:
    """Return the steps of the flood that begin before the other run's, and the seconds that the other run waits."""
    store = open_store(url, SystemClock(), find_key)
    engine = Engine(store, folder, STEPS)
    report(f"{store.engine.dialect.name}: {count:,} runs")
    for _ in range(count):
        engine.start([step("counted")], environment="flood")
    worker = (Worker if store.is_sqlite else QueueWorker)(store, engine.driver(), concurrency=SLOTS)
    with background("worker", worker.run, worker.stop):
        eventually(lambda: len(engine.notes()) > 3 * SLOTS)
        begun = SystemClock().now().timestamp()
        engine.start([step("other")], environment="other")
        before = len(engine.notes())
        eventually(lambda: any(note.startswith("other") for note in engine.notes()))
    place, note = next((place, note) for place, note in enumerate(engine.notes()) if note.startswith("other"))
    store.close()
    return place - before, float(note.split()[1]) - begun


def main() -> int:
    """Queue, measure, print; the exit status is 1 where more steps began before than the worker has slots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    count = parser.parse_args().runs
    server = databases.start_server()
    try:
        with tempfile.TemporaryDirectory() as folder:
            urls = f"sqlite:///{folder}/kneo.sqlite", server.url(server.create())
            found = [measure(url, Path(folder) / str(number), count) for number, url in enumerate(urls)]
    finally:
        server.stop()
    for dialect, (steps, seconds) in zip(databases.DIALECTS, found, strict=True):
        print(
            f"{dialect:<12}{steps} steps of {SLOTS} slots began before; {seconds:.2f} s, a step takes {STEP_SECONDS} s"
        )
    return 0 if all(steps <= SLOTS for steps, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
