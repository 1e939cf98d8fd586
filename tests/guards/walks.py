"""Print the files of the project that a commit, an agent step, a gated tool call and a decision enter: ``make walks``.

Guidance, not a gate. After a warm-up on SQLite a profiler records the file of every function that is called, in all threads of
this process: from a commit with a new bundle to its release, and from a request to its response.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from controller_bench import Bench as Controller  # noqa: E402
from model_server import Call, Reply, model_server  # noqa: E402
from service_bench import APPROVE, DRAFT, PUBLISH, Json, serving, spec_of  # noqa: E402

from kneo.clock import ManualClock, SystemClock  # noqa: E402
from kneo.store.migrate import open_store  # noqa: E402

PACKAGES = tuple(f"{ROOT / package}/" for package in ("kneo",))


class Profiler:
    """Counts calls by file while ``measure`` runs."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.is_on = False
        threading.setprofile(self._record)
        sys.setprofile(self._record)

    def _record(self, frame: FrameType, event: str, _argument: object) -> None:
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
        names = sorted(Path(file).stem for file in calls if Path(file).parent == ROOT / room)
        print(f"  {files:3} {room}: {', '.join(names)}")


def walk_commit(profiler: Profiler, folder: Path) -> None:
    """Report the reconciliation of a commit that signs and releases a new version."""
    clock = ManualClock(SystemClock().now())
    store = open_store(f"sqlite:///{folder}/registry.sqlite", clock)
    try:
        controller = Controller(store, folder)
        controller.repo.release("prod", "mail", "1.0.0")
        reconciler, lease = controller.reconciler(), controller.lease()
        reconciler.reconcile(lease)
        controller.repo.release("prod", "mail", "1.1.0", controller.repo.other_spec())
        report("commit", profiler.measure(lambda: reconciler.reconcile(lease)))
        assert controller.served() == {"mail": "1.1.0"}, "the commit was not released"
        reconciler.mirror.close()
    finally:
        store.close()


def walk_requests(profiler: Profiler, folder: Path) -> None:
    """Report a run of one agent step, and the decision of a paused run."""
    with serving(folder, f"sqlite:///{folder}/k.sqlite") as bench:
        for _ in range(3):
            bench.start(spec_of(DRAFT))
            bench.answer(bench.start(spec_of(DRAFT, APPROVE, PUBLISH)))
        report("agent step", profiler.measure(lambda: bench.start(spec_of(DRAFT))))
        paused = bench.start(spec_of(DRAFT, APPROVE, PUBLISH))
        report("decision", profiler.measure(lambda: bench.answer(paused)))


PAYING: Json = {
    "version": "v1",
    "agent": {
        "name": "teller",
        "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
        "strategy": "react",
        "tools": ["pay"],
    },
    "workflow": {"type": "sequential", "name": "pay", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
    "tools": {
        "pay": {
            "description": "Pay.",
            "implementation": "lab_functions.pay",
            "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}},
            "capabilities": ["privileged"],
            "review": {"before": {"human": "editor"}},
        }
    },
    "components": {"humans": {"editor": {"description": "Pay this?"}}},
}


def walk_call(profiler: Profiler, folder: Path) -> None:
    """Report a step whose agent calls a tool behind a gate: up to the question, and from the decision to the answer."""
    script = [Reply(calls=[Call("pay", {"amount": 20})]), Reply("Paid.")]
    with model_server(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "key")
        patch.setenv("OPENAI_BASE_URL", server.openai_url)
        with serving(folder, f"sqlite:///{folder}/k.sqlite") as bench:
            bench.answer(bench.start(PAYING))
            asking: list[Json] = []
            asked = profiler.measure(lambda: asking.append(bench.start(PAYING)))
            decided = profiler.measure(lambda: bench.answer(asking[0]))
            run = bench.get(f"/runs/{asking[0]['run_id']}")
            assert run["status"] == "succeeded", run
    report("agent step, to the question about its call", asked)
    report("decision about the call, to the agent's answer", decided)
    report("agent step with a gated call", asked + decided)


def main() -> None:
    profiler = Profiler()
    for walk in (walk_commit, walk_requests, walk_call):
        with tempfile.TemporaryDirectory() as folder:
            walk(profiler, Path(folder))


if __name__ == "__main__":
    main()
