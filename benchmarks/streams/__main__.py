"""How long decisions and probes take with 200 slow clients of streams and 100 refused sign-ins a second, compared with neither.

    python -m benchmarks.streams --decisions 300

The service, the load and the measuring client are processes of their own. Exit status 1 says that a target was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
import httpx
from service_bench import APPROVE, DRAFT, PUBLISH, spec_of

DECISION_MS, PROBE_MS = 300, 100
"""Targets: the 95th percentile of decisions, and of ``/livez``."""

DECISION_SECONDS, PROBE_SECONDS = 0.2, 0.1
"""Time from one request to the next, where the service responds in time."""

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Times:
    """The times of one kind of request, in milliseconds."""

    name: str
    taken: Sequence[float]

    def at(self, share: float) -> float:
        """Return the time within which this share of the requests was answered."""
        return sorted(self.taken)[min(len(self.taken) - 1, int(len(self.taken) * share))]

    def __str__(self) -> str:
        return (
            f"{self.name:<10}{self.at(0.5):>8.0f} ms{self.at(0.95):>8.0f} ms{max(self.taken):>8.0f} ms"
            f"{len(self.taken):>8} requests"
        )


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module of this benchmark until the block ends."""
    command = [sys.executable, "-m", f"benchmarks.streams.{module}", *arguments]
    with subprocess.Popen(  # noqa: S603 - this benchmark itself
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.communicate()


def first_line(running: subprocess.Popen[str]) -> str:
    """Wait for the first line that a process prints."""
    assert running.stdout is not None
    line = running.stdout.readline().strip()
    if not line:
        msg = f"{running.args} has ended."
        raise RuntimeError(msg)
    return line


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(name: str, seconds: float, work: Callable[[], httpx.Response], *, until: Callable[[int], bool]) -> Times:
    """Send requests at an even pace; the time of one that had to wait for the one before counts from when it was due."""
    taken: list[float] = []
    due = time.perf_counter()
    while not until(len(taken)):
        time.sleep(max(0.0, due - time.perf_counter()))
        work().raise_for_status()
        taken.append((time.perf_counter() - due) * 1_000)
        due = max(due + seconds, time.perf_counter())
    return Times(name, taken)


@contextmanager
def loaded(url: str, runs: Sequence[str]) -> Iterator[None]:
    """Put the load on the service; print what it was."""
    with httpx.Client(base_url=url, timeout=60) as browser:
        browser.post("/console/login", data={"key": "viewer-key"}, headers={"sec-fetch-site": "same-origin"})
        [(name, value)] = browser.cookies.items()
    with process("load", url, f"{name}={value}", *runs) as running:
        first_line(running)
        yield
        sys.stdout.write(f"load: {json.loads(running.communicate()[0])}\n")


def start_runs(client: httpx.Client, count: int) -> list[dict[str, object]]:
    """Start runs that wait for a decision."""
    body = {"input": "hi", "spec": spec_of(DRAFT, APPROVE, PUBLISH)}
    return [client.post("/v1/runs", json=body).raise_for_status().json() for _ in range(count)]


def measure(service: subprocess.Popen[str], url: str, count: int, *, with_load: bool) -> tuple[Times, Times]:
    """Measure decisions and probes."""
    headers = {"Authorization": "Bearer admin-key"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client, httpx.Client(base_url=url) as prober:
        runs = start_runs(client, count)
        probes: list[Times] = []
        ended = threading.Event()

        def decide() -> httpx.Response:
            run = next(left)
            request = run["metadata"]["pending_human_request"]["request_id"]  # type: ignore[index]
            body = {"request_id": request, "decision": "approved"}
            return client.post(f"/v1/human-tasks/{run['continuation_id']}/resume", json=body)

        def probe() -> None:
            probes.append(timed("livez", PROBE_SECONDS, lambda: prober.get("/livez"), until=lambda _: ended.is_set()))

        left = iter(runs)
        with loaded(url, [str(run["run_id"]) for run in runs]) if with_load else nullcontext():
            busy, begun = processor_seconds(service.pid), time.perf_counter()
            probing = threading.Thread(target=probe)
            probing.start()
            decisions = timed("decisions", DECISION_SECONDS, decide, until=lambda number: number == count)
            ended.set()
            probing.join()
            busy, passed = processor_seconds(service.pid) - busy, time.perf_counter() - begun
    sys.stdout.write(
        f"{'with the load' if with_load else 'without it'}: {passed:.0f} s, processor time of the service "
        f"{busy / passed * 100:.0f} % of a core, load of the machine {os.getloadavg()[0]:.1f}\n"
        f"{'':<10}{'p50':>8}   {'p95':>8}   {'longest':>8}\n{decisions}\n{probes[0]}\n"
    )
    return decisions, probes[0]


def main() -> int:
    """Measure on each database, without the load and with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--decisions", type=int, default=300)
    parser.add_argument("--databases", default="sqlite,postgresql")
    arguments = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        server = databases.start_server() if "postgresql" in arguments.databases else None
        try:
            for name in arguments.databases.split(","):
                url = server.url(server.create()) if server and name == "postgresql" else f"sqlite:///{folder}/k.sqlite"
                sys.stdout.write(f"\n{name}\n")
                with process("service", f"{folder}/{name}", url) as service:
                    address = first_line(service)
                    measure(service, address, arguments.decisions, with_load=False)
                    decisions, probes = measure(service, address, arguments.decisions, with_load=True)
                missed |= decisions.at(0.95) > DECISION_MS or probes.at(0.95) > PROBE_MS
        finally:
            if server is not None:
                server.stop()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
