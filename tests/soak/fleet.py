"""The processes of a soak: two services, three workers and two controllers on one PostgreSQL, and a Git remote."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import databases
import httpx
from config_repo import ConfigRepo
from databases import Server, start_server
from kneo_process import PATIENCE_SECONDS, Machine, Process, eventually
from soak.costs import ProcessorTime
from soak.evidence import Sample
from soak.growth import sample
from soak.laws import may_end
from soak.program import MODULE, SOURCE, spec

from kneo.clock import SystemClock
from kneo.store.migrate import open_store
from kneo.trust.keys import PrivateKey

BUNDLE = "soak"
PEOPLE = ("ann", "bob", "cid")
"""The reviewers; the last one approves releases, too."""

REQUESTER = "requester"

SIZES = {"service": 2, "worker": 3, "controller": 2}

DURABLE = {"synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on", "shared_buffers": "128MB"}
"""Settings of the server that differ from those of tests: a commit is in the log of a server that ends at once."""


def key_of(person: str) -> str:
    """Return the API key of a person."""
    return f"{person}-key-of-the-soak-0123456789"


class FleetMachine(Machine):
    """Processes that begin with nothing, as in production."""

    begin: ClassVar = staticmethod(subprocess.Popen)


@dataclass
class Member:
    """One process of the fleet, started again when it has ended."""

    kind: str
    number: int
    arguments: tuple[str, ...]
    cwd: Path
    process: Process | None = None
    lives: int = 0
    since: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number} (start {self.lives})"

    @property
    def age(self) -> float:
        """The seconds since the process was started."""
        return time.monotonic() - self.since

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.popen.poll() is None


class Fleet:
    """The processes, their database and the repository that they reconcile."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.database = server.create()
        self.url = server.url(self.database)
        self.repo = ConfigRepo(folder / "clone")
        self.remote = folder / "origin.git"
        self.clock = SystemClock()
        self.lock = threading.Lock()
        self.ended_alone: list[str] = []
        self.is_poisoned = False
        """Whether a run kills its workers."""
        self.poisoned_deaths = 0
        self.restarts = 0
        self.start_seconds = 0.0
        self.samples: list[Sample] = []
        self.costs = ProcessorTime()
        self.work = folder / "work"
        keys = {REQUESTER: "operator", **dict.fromkeys(PEOPLE, "reviewer,approver")}
        self.machine = FleetMachine(
            self.work,
            self.url,
            KNEO_SERV_SERVICE_KEY=PrivateKey.generate().dump().decode(),
            KNEO_SERV_API_KEYS=";".join(f"{name}:{key_of(name)}:{roles}" for name, roles in keys.items()),
            KNEO_SERV_LOG_LEVEL="WARNING",
        )
        (self.work / f"{MODULE}.py").write_text(SOURCE)
        self.effects = self.work / "effects.jsonl"
        self.members: list[Member] = []

    # ---- the repository -------------------------------------------------------------------------------------------

    def declare(self, version: str) -> None:
        """Sign a version and declare it for both environments, in the clone."""
        self.repo.bundle(BUNDLE, version, {**spec(BUNDLE), "metadata": {"version": version}})
        # Poisonous runs are specs of their own, whose function is executed in the worker.
        self.repo.environment("dev", {BUNDLE: version}, inlineSpecs=True, tools={"sandbox": {"trusted": ["poison"]}})
        rules = {"people": {PEOPLE[-1]: {"roles": ["approver"]}}, "approvals": {"required": 1, "roles": ["approver"]}}
        self.repo.environment("prod", {BUNDLE: version}, **(rules if version != "1.0.0" else {}))
        self.repo.commit(f"Release {version}")

    def push(self) -> bool:
        """Push the clone; return whether the remote was there."""
        try:
            self.repo.git("push", "-q", str(self.remote), "main")
        except subprocess.CalledProcessError:
            return False
        return True

    # ---- processes ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all processes and wait until the first release can be run."""
        self.declare("1.0.0")
        self.repo.git("clone", "-q", "--bare", str(self.repo.folder), str(self.remote))
        open_store(self.url, self.clock).close()
        commands = {
            "service": ("service", "serve", "--workers", "0", "--port", "0"),
            "worker": ("worker",),
            "controller": (
                "controller", "run", "--repo", f"file://{self.remote}", "--trust-root", self.repo.pin, "--interval", "2s",
            ),
        }  # fmt: skip
        for kind, size in SIZES.items():
            for number in range(1, size + 1):
                cwd = self.folder / f"controller-{number}" if kind == "controller" else self.work
                cwd.mkdir(exist_ok=True)
                self.members.append(Member(kind, number, commands[kind], cwd))
        begun = time.monotonic()
        for member in self.members:
            self.begin(member)
        for member in self.of("service"):
            self._keep_port(member)
        eventually(lambda: "1.0.0" in self._released())
        self.start_seconds = time.monotonic() - begun

    def _released(self) -> str:
        answer = httpx.get(
            f"{self.urls()[0]}/v1/environments/prod",
            headers={"Authorization": f"Bearer {key_of(PEOPLE[-1])}"},
            timeout=240,
        )
        return answer.text if answer.status_code == 200 else ""

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    def begin(self, member: Member) -> None:
        """Start a process of the fleet."""
        with self.lock:
            member.process = self.machine.start(*member.arguments, answers=False, cwd=member.cwd)
            member.lives += 1
            member.since = time.monotonic()

    def _keep_port(self, member: Member) -> None:
        process = member.process
        assert process is not None
        url = eventually(lambda: process.url or (not member.is_alive and process.log.read_text()))
        assert url.startswith("http://"), url
        member.arguments = (*member.arguments[:-1], url.rpartition(":")[2])

    def urls(self) -> list[str]:
        """Return the addresses of the services, whether they respond or not."""
        return [f"http://127.0.0.1:{member.arguments[-1]}" for member in self.of("service")]

    def kill(self, member: Member) -> None:
        """Kill a process; it is not started again."""
        with self.lock:
            process, member.process = member.process, None
        if process is not None:
            process.kill()

    def tend(self) -> None:
        """Start the processes again that ended, and note those that were not stopped."""
        for member in self.members:
            process = member.process
            if process is None or process.popen.poll() is None:
                continue
            if may_end(process.popen.returncode, member.age, is_stopped=False):
                self.restarts += 1
            elif self.is_poisoned and member.kind == "worker" and process.popen.returncode == -signal.SIGKILL:
                self.poisoned_deaths += 1
            else:
                last = process.log.read_text().strip().splitlines()[-1:] or [""]
                self.ended_alone.append(f"{member.name} ended with {process.popen.returncode}: {last[0][:300]}")
            process.kill()
            self.begin(member)

    def measure(self) -> None:
        """Take a sample of each process."""
        at = self.clock.now().timestamp()
        kinds = {self.server.process.pid: "postgres"}
        for member in self.members:
            process = member.process
            if process is None:
                continue
            kinds[process.popen.pid] = member.kind
            found = sample(member.name, process.popen.pid, at)
            if found is not None:
                self.samples.append(found)
        self.costs.sample(kinds)

    def stop(self) -> None:
        """Stop all processes, each by one SIGTERM, which it has to obey."""
        running = [(member, member.process, member.age) for member in self.members if member.process is not None]
        for _, process, _ in running:
            process.popen.terminate()
        for member, process, age in running:
            status = process.popen.wait(PATIENCE_SECONDS)
            process.kill()
            if not may_end(status, age, is_stopped=True):
                self.ended_alone.append(f"{member.name} ended with {status} after SIGTERM")


@contextmanager
def running(folder: Path) -> Iterator[Fleet]:
    """Run a fleet until a block ends."""
    databases.SPEED.update(DURABLE)
    server = start_server()
    fleet = Fleet(folder, server)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.machine.stop()
        server.stop()


def remove(folder: Path) -> None:
    """Remove the folder of a soak that broke no law."""
    shutil.rmtree(folder, ignore_errors=True)
