"""What the deployed form costs, in pairs with another commit: ``make bench-fleet BASE=main~20``.

Processor time over all processes, statements, bytes of the log of PostgreSQL and latencies of a run with a person's decision and of a
run of three functions, and the same processes without work. Sides take turns, and the middle of each one's rounds counts; only ratios
of one run mean anything on a busy machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MEASURE = Path(__file__).with_name("measure.py")


def main() -> None:
    """Measure both sides in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="", help="the commit to compare with; left out: no comparison")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60, help="runs of each flow in a round")
    parser.add_argument("--workers", default="1", help="numbers of workers, by comma")
    parser.add_argument("--idle", type=float, default=10, help="seconds without work")
    parser.add_argument("--database-core", type=int, help="the core of PostgreSQL; all other processes get the others")
    parser.add_argument(
        "--temporal", action="store_true", help="a further side that dispatches through a Temporal server"
    )
    parser.add_argument("--sandboxes", action="store_true", help="functions in sandboxes, where a commit has them")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg(), "runs": arguments.runs, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(prefix="kneo-base-") as folder:
        sides = {"now": ROOT}
        if arguments.base:
            sides["base"] = extracted(arguments.base, Path(folder))
        if arguments.temporal:
            sides["temporal"] = ROOT
        for workers in map(int, arguments.workers.split(",")):
            order = {"workers": workers, "runs": arguments.runs, "idle": arguments.idle}
            order["sandboxes"] = arguments.sandboxes
            order["database_core"] = arguments.database_core
            rounds: dict[str, list[Any]] = {side: [] for side in sides}
            for number in range(arguments.rounds):
                for side in [*sides][:: 1 if number % 2 else -1]:
                    rounds[side].append(measured(sides[side], order | {"temporal": side == "temporal"}))
            middles = {side: middle(each) for side, each in rounds.items()}
            for other in set(sides) - {"now"}:
                middles[f"processor time, now : {other}"] = {
                    flow: round(middles["now"][flow]["processor_ms"] / middles[other][flow]["processor_ms"], 2)
                    for flow in ("human", "three")
                }
            found[f"workers: {workers}"] = middles
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def extracted(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder."""
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "kneo", "tests"]
    done = subprocess.run(git, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def measured(checkout: Path, order: Mapping[str, object]) -> Any:  # noqa: ANN401 - nested figures
    """Measure one side in a process of its own."""
    path = os.pathsep.join(str(checkout / part) for part in ("", "tests", "tests/support"))
    env = {**os.environ, "PYTHONPATH": path}  # noqa: TID251 - what an operator does
    command = [sys.executable, str(MEASURE), json.dumps(order)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=checkout)
    return json.loads(done.stdout)


def middle(rounds: Sequence[Any]) -> Any:  # noqa: ANN401 - nested figures
    """Return the middle of each figure."""
    if isinstance(rounds[0], Mapping):
        return {name: middle([each[name] for each in rounds]) for name in rounds[0]}
    return round(statistics.median(rounds), 2)


if __name__ == "__main__":
    main()
