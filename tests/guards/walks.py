"""Count the files of the project that one agent step and one decision enter: ``make walks``. Guidance, not a gate.

A service runs in this process, on SQLite. After a warm-up a profiler notes the file of every function that is called, in all
threads, from the request to its response.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from service_bench import APPROVE, DRAFT, PUBLISH, Bench, Json, serving, spec_of  # noqa: E402

PACKAGES = tuple(f"{ROOT / package}/" for package in ("kneo", "controller", "cli"))


class Profiler:
    """Counts calls by file while it is on."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.is_on = False
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            self.calls[frame.f_code.co_filename] += 1

    def measure(self, work: Callable[[], object]) -> Counter[str]:
        self.calls.clear()
        self.is_on = True
        work()
        self.is_on = False
        return Counter(self.calls)


def report(name: str, calls: Counter[str]) -> None:
    rooms = Counter("/".join(Path(file).relative_to(ROOT).parts[:-1]) for file in calls)
    print(f"{name}: {len(calls)} files, {calls.total()} calls")
    for room, files in rooms.most_common():
        print(f"  {files:3} {room}")


def decide(bench: Bench, run: Json) -> None:
    bench.answer(run)


def main() -> None:
    profiler = Profiler()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), f"sqlite:///{folder}/k.sqlite") as bench:
        for _ in range(3):
            bench.start(spec_of(DRAFT))
            decide(bench, bench.start(spec_of(DRAFT, APPROVE, PUBLISH)))
        report("agent step", profiler.measure(lambda: bench.start(spec_of(DRAFT))))
        paused = bench.start(spec_of(DRAFT, APPROVE, PUBLISH))
        report("decision", profiler.measure(lambda: decide(bench, paused)))


if __name__ == "__main__":
    main()
