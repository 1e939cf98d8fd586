"""Side by side in one run: what the controller takes, and what nobody could do without."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from config_repo import ConfigRepo
from kneo_process import Machine

from benchmarks.reconcile.floor import Floor
from benchmarks.reconcile.repository import Fleet
from kneo.clock import SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import Lease

COLD_TURNS, TURNS, POLLS, PUSHES = 7, 15, 40, 7
MANY_BUNDLES = 20_000
"""From so many bundles on the first reconciliation is measured once."""


@dataclass(frozen=True)
class Spent:
    """Milliseconds: on the clock, and of processors, by this process and all it started."""

    wall: float
    cpu: float


def spend(work: Callable[[], object]) -> Spent:
    """Do something and say what it took."""
    started, before = time.perf_counter(), _cpu_seconds()
    work()
    return Spent((time.perf_counter() - started) * 1000, (_cpu_seconds() - before) * 1000)


def timed(work: Callable[[], object]) -> float:
    """Say how many milliseconds something takes."""
    return spend(work).wall


def _cpu_seconds() -> float:
    mine, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    total = mine.ru_utime + mine.ru_stime + ended.ru_utime + ended.ru_stime
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            running = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            total += (int(running[11]) + int(running[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Subject:
    """A controller with a database and a mirror of its own."""

    def __init__(self, repo: ConfigRepo, folder: Path) -> None:
        folder.mkdir()
        self.store: Store = open_store(f"sqlite:///{folder / 'kneo.sqlite'}", SystemClock())
        self.mirror = Mirror(str(repo.folder), "main", folder / "mirrors")
        self.reconciler = Reconciler(self.store, self.mirror, repo.pin)
        with self.store.write() as tx:
            fence = requests.take_lease(tx, "controller", "bench", timedelta(hours=1))
        self.lease = Lease("controller", "bench", fence or 0)

    def run(self) -> None:
        """Do one pass, which has to end well."""
        done = self.reconciler.reconcile(self.lease)
        if any(outcome.state != "Ready" for outcome in done.outcomes.values()):
            raise AssertionError(done)

    def close(self) -> None:
        self.mirror.close()
        self.store.close()


def cold(fleet: Fleet, folder: Path) -> dict[str, float]:
    """A database and a mirror that hold nothing yet."""
    ours, floors = [], []
    for turn in range(COLD_TURNS if len(fleet.versions) < MANY_BUNDLES else 1):
        floor = Floor(fleet, folder / f"floor{turn}.git")
        floors.append(spend(lambda it=floor: it.run(fleet.paths())))
        subject = Subject(fleet.repo, folder / f"cold{turn}")
        ours.append(spend(subject.run))
        subject.close()
        shutil.rmtree(folder / f"cold{turn}")
        shutil.rmtree(folder / f"floor{turn}.git")
    return _compared("cold", ours, floors)


def changes(fleet: Fleet, folder: Path) -> dict[str, float]:
    """Five new versions in one commit, once everything else is known; then nothing new; then another process."""
    floor, subject = Floor(fleet, folder / "floor.git"), Subject(fleet.repo, folder / "warm")
    floor.run(fleet.paths()[:1])
    subject.run()
    ours, floors = [], []
    for turn in range(TURNS):
        paths = fleet.change(turn)
        both = [(ours, subject.run), (floors, lambda wanted=paths: floor.run(wanted))]
        for results, work in both if turn % 2 else both[::-1]:
            results.append(spend(work))
    found = _compared("five_changed", ours, floors)
    again = Reconciler(subject.store, subject.mirror, fleet.repo.pin)
    restart = timed(lambda: again.reconcile(subject.lease))
    remote = ["git", "ls-remote", "-q", str(fleet.repo.folder), "refs/heads/main"]
    polls, bare = [], []
    for _ in range(POLLS):
        bare.append(timed(lambda: subprocess.run(remote, check=True, capture_output=True)))
        polls.append(timed(subject.mirror.poll))
    subject.close()
    return {
        **found,
        "restart_ms": round(restart),
        "no_op_ms": round(statistics.median(polls), 1),
        "ls_remote_ms": round(statistics.median(bare), 1),
    }


def peak_memory(fleet: Fleet, folder: Path) -> dict[str, float]:
    """What a process needs for the first pass, beside what it needs for nothing."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from benchmarks.reconcile.measure import Subject, highest_rss_mib\n"
        "idle = highest_rss_mib()\n"
        "repo = SimpleNamespace(folder=Path(sys.argv[1]), pin=sys.argv[2])\n"
        "Subject(repo, Path(sys.argv[3])).run()\n"
        "print(idle, highest_rss_mib())\n"
    )
    arguments = [str(fleet.repo.folder), fleet.repo.pin, str(folder / "memory")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    idle, peak = map(int, done.stdout.split())
    return {"idle_rss_mib": idle, "peak_rss_mib": peak}


def highest_rss_mib() -> int:
    """Say how much memory this process needed at most; what a child inherits of its parent's does not count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def webhook(fleet: Fleet, folder: Path) -> dict[str, float]:
    """From the delivery of a webhook to the release being served, by a real ``kneo up`` that would look hourly else."""
    secret = "bench"  # noqa: S105 - of a service that lives for this measurement
    database = f"sqlite:///{folder / 'up.sqlite'}"
    machine = Machine(folder / "machine", database, KNEO_SERV_HOOK_SECRET_GENERIC=secret)
    url = f"file://{fleet.repo.folder}"
    took = []
    try:
        process = machine.up("--repo", url, "--trust-root", fleet.repo.pin, "--interval", "1h")
        with httpx.Client(base_url=process.url, timeout=30) as client:
            _wait_for(client, fleet.repo.head())
            for turn in range(PUSHES):
                fleet.change(turn, 1)
                body = json.dumps({"turn": turn}).encode()
                proof = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
                headers = {"x-signature": proof, "x-delivery": str(turn)}
                started = time.perf_counter()
                client.post("/v1/hooks/generic", content=body, headers=headers).raise_for_status()
                _wait_for(client, fleet.repo.head())
                took.append((time.perf_counter() - started) * 1000)
    finally:
        machine.stop()
    return {"webhook_to_served_ms": round(statistics.median(took)), "webhook_to_served_worst_ms": round(max(took))}


def _wait_for(client: httpx.Client, commit: str) -> None:
    deadline = time.monotonic() + 120
    # Until the first pass is through there is no such environment.
    while commit not in client.get("/v1/environments/prod").text:
        if time.monotonic() > deadline:
            raise AssertionError(commit)
        time.sleep(0.005)


def _compared(name: str, ours: Sequence[Spent], floors: Sequence[Spent]) -> dict[str, float]:
    wall, floor_wall = (statistics.median(item.wall for item in items) for items in (ours, floors))
    cpu, floor_cpu = (statistics.median(item.cpu for item in items) for items in (ours, floors))
    return {
        f"{name}_ms": round(wall),
        f"{name}_floor_ms": round(floor_wall),
        f"{name}_ratio": round(wall / floor_wall, 2),
        f"{name}_cpu_ratio": round(cpu / floor_cpu, 2),
    }
