"""Processor time of the message authentication codes of records, in pairs: ``python -m benchmarks.engine.record_macs``. Prints JSON.

One process and one database make the same runs with the codes and without them in turns; receipts are signed both times.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine import flows
from benchmarks.engine.in_process import measure
from kneo.platform import PlatformManager
from kneo.settings import from_env
from kneo.trust.record_mac import no_macs

PAIRS, RUNS = 150, 10


def main(pairs: int, runs: int) -> dict[str, dict[str, float]]:
    """Return the processor time of a run of each flow without and with codes, in milliseconds, and the middle of the differences."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{flows.MODULE}.py").write_text(flows.SOURCE)
        with PlatformManager(settings=from_env({"HOME": name}, folder)) as manager:
            manager.start_worker(1)

            def plain(number: int) -> None:
                assert manager.run_from_spec(f"text {number}", spec=flows.plain()).status == "succeeded"

            def asking(number: int) -> None:
                paused = manager.run_from_spec(f"text {number}", spec=flows.asking())
                request = paused.metadata["pending_human_request"]["request_id"]
                done = manager.resume_human_task(paused.continuation_id, request_id=request, decision="approved")
                assert done.status == "succeeded"

            def chain(number: int) -> None:
                assert manager.run_from_spec(f"{number}", spec=flows.chain(10)).status == "succeeded"

            flow_of = {"three steps": plain, "draft, person, publish": asking, "10 steps": chain}
            return {title: _pairs(manager, work, pairs, runs) for title, work in flow_of.items()}


def _pairs(manager: PlatformManager, work: Callable[[int], None], pairs: int, runs: int) -> dict[str, float]:
    macs = {"with": manager.store.macs, "without": no_macs()}
    took: dict[str, list[float]] = {"with": [], "without": []}
    measure(work, runs, 1)
    for number in range(pairs):
        for how in ("with", "without") if number % 2 else ("without", "with"):
            manager.store.macs = macs[how]
            took[how].append(measure(work, runs, 1)["cpu_ms"])
    manager.store.macs = macs["with"]
    differences = [(codes - none) / none * 100 for codes, none in zip(took["with"], took["without"], strict=True)]
    middles = {f"{how} ms": round(statistics.median(values), 3) for how, values in took.items()}
    quarters = statistics.quantiles(differences, n=4)
    return {**middles, "percent": round(statistics.median(differences), 2)} | {
        "percent, first quarter": round(quarters[0], 2),
        "percent, third quarter": round(quarters[2], 2),
    }


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]] or [PAIRS, RUNS]
    print(json.dumps(main(*asked), indent=2))
