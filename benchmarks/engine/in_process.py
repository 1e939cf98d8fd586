"""Kneo inside this process, one SQLite file: ``python -m benchmarks.engine.in_process``. Prints JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.engine import flows
from kneo.platform import PlatformManager
from kneo.settings import from_env


def main(count: int, workers: int, lengths: list[int], settings: dict[str, str]) -> dict[str, object]:
    """Run every flow; return what each cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{flows.MODULE}.py").write_text(flows.SOURCE)
        with PlatformManager(settings=from_env({"HOME": name, **settings}, folder)) as manager:
            manager.start_worker(8)

            def plain(number: int) -> None:
                done = manager.run_from_spec(f"text {number}", spec=flows.plain())
                assert done.output_text == f"text {number} (draft) (polished) (published)", done

            def asking(number: int) -> None:
                paused = manager.run_from_spec(f"text {number}", spec=flows.asking())
                request = paused.metadata["pending_human_request"]["request_id"]
                done = manager.resume_human_task(paused.continuation_id, request_id=request, decision="approved")
                assert done.output_text == f"text {number} (draft) (published)", done

            def chain(length: int) -> Callable[[int], None]:
                tree = flows.chain(length)

                def run(number: int) -> None:
                    assert manager.run_from_spec(f"{number}", spec=tree).status == "succeeded"

                return run

            answer: dict[str, object] = {}
            for title, work in (("plain", plain), ("asking", asking)):
                measure(work, 5, workers)
                answer[title] = measure(work, count, 1)
                answer[f"{title} x{workers}"] = measure(work, count, workers)
            for length in lengths:
                chain(length)(0)
                found = measure(chain(length), max(1, min(10, 1000 // length)), 1)
                answer[f"chain {length}"] = found | {"ms_per_step": found["ms"] / length}
    return answer


def measure(work: Callable[[int], None], count: int, workers: int) -> dict[str, float]:
    """Run something so many times with so many at once; ``ms`` and ``cpu_ms`` are for each."""
    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(count)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": count / seconds, "ms": seconds / count * 1000, "cpu_ms": cpu / count * 1000}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["count"], asked["workers"], asked["lengths"], asked.get("settings", {}))))
