"""The faults of a soak, one after the other: processes killed and stopped, the database restarted, Git away, slow readers."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import psycopg
from soak.evidence import Fault
from soak.fleet import PEOPLE, REQUESTER, Fleet, Member, key_of
from soak.program import POISONOUS, poisonous_spec

SETTLE_SECONDS = 10.0
"""Time after a fault in which requests may still fail."""


class Breakage(ABC):
    """One kind of fault, which begins, lasts and ends."""

    interrupts = False
    """Whether a step in progress may be executed again."""

    seconds = 0.5
    """How long it lasts at least."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def is_over(self) -> bool:
        """Return whether everything responds again."""
        return True


class Killed(Breakage):
    """Each process of a kind in turn is killed and started again."""

    def __init__(self, fleet: Fleet, kind: str) -> None:
        super().__init__(fleet)
        self.kind, self.interrupts = kind, kind == "worker"
        # The last worker is never killed: what grows in a process that lives for long shows in its samples.
        members = fleet.of(kind)
        self._victims = itertools.cycle(members[:-1] if len(members) > 2 else members)
        self._victim: Member = members[0]

    @property
    def name(self) -> str:
        return f"{self.kind} killed"

    def begin(self) -> None:
        self._victim = next(self._victims)
        self.fleet.kill(self._victim)

    def end(self) -> None:
        self.fleet.begin(self._victim)

    def is_over(self) -> bool:
        if self.kind != "service":
            return True
        address = f"http://127.0.0.1:{self._victim.arguments[-1]}/readyz"
        try:
            return httpx.get(address, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


class Stopped(Breakage):
    """A worker does not get the processor for a while, and continues then."""

    name, interrupts, seconds = "worker stopped", True, 8.0

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._stopped: int | None = None
        self._victim = fleet.of("worker")[-1]

    def begin(self) -> None:
        process = self._victim.process
        self._stopped = process.popen.pid if process is not None and process.popen.poll() is None else None
        if process is not None and self._stopped is not None:
            process.popen.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        process = self._victim.process
        if process is not None and process.popen.pid == self._stopped:
            process.popen.send_signal(signal.SIGCONT)


class StoppedAtRandom(Stopped):
    """Any process is stopped, for less than the time after which a worker that holds its session counts as lost: no step repeats."""

    interrupts = False

    LENGTHS = (5.0, 20.0)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self._victim.kind} stopped for {self.seconds:.0f} s"

    def begin(self) -> None:
        self._victim = random.choice(self.fleet.members)
        self.seconds = random.choice(self.LENGTHS)
        super().begin()


class DatabaseRestarted(Breakage):
    """PostgreSQL ends at once and is started again after a while."""

    name, interrupts, seconds = "database restarted", True, 2.0

    def begin(self) -> None:
        self.fleet.server.halt()

    def end(self) -> None:
        self.fleet.server.resume()


class SessionsEnded(Breakage):
    """All sessions of the database are ended, and with them the locks that live as long as they do."""

    name, interrupts = "sessions ended", True

    def begin(self) -> None:
        with psycopg.connect(
            f"host={self.fleet.server.folder} user=postgres dbname=postgres", autocommit=True
        ) as found:
            found.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self.fleet.database,)
            )

    def end(self) -> None:
        pass


class GitAway(Breakage):
    """The Git remote does not respond."""

    name, seconds = "Git remote away", 5.0

    def begin(self) -> None:
        self.fleet.remote.rename(self.fleet.remote.with_suffix(".away"))

    def end(self) -> None:
        self.fleet.remote.with_suffix(".away").rename(self.fleet.remote)


class SlowReaders(Breakage):
    """Clients open the event stream of the inbox and read nothing of it."""

    name, seconds = "slow readers", 8.0
    count = 20

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._open: list[socket.socket] = []

    def begin(self) -> None:
        lines = [
            "GET /v1/human-tasks/stream HTTP/1.1", "Host: soak", f"Authorization: Bearer {key_of(PEOPLE[0])}",
            "Last-Event-ID: 0", "", "",
        ]  # fmt: skip
        for number in range(self.count):
            address = urlsplit(self.fleet.urls()[number % 2])
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.settimeout(5)
            try:
                connection.connect((address.hostname, address.port))
                connection.sendall("\r\n".join(lines).encode())
            except OSError:
                connection.close()
                continue
            self._open.append(connection)

    def end(self) -> None:
        while self._open:
            self._open.pop().close()


class PoisonousRun(Breakage):
    """A run whose step kills each worker that executes it, until it ends ``worker_lost``."""

    name, interrupts = "poisonous run", True

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._numbers = itertools.count(1)
        self._run: str | None = None

    def begin(self) -> None:
        self.fleet.is_poisoned = True
        text = f"{POISONOUS} {next(self._numbers)}"
        body = {"input": text, "spec": poisonous_spec(), "environment": "dev", "async_mode": True}
        response = self._client().post("/v1/runs", json=body)
        response.raise_for_status()
        self._run = response.json()["run_id"]

    def end(self) -> None:
        pass

    def is_over(self) -> bool:
        try:
            status = self._client().get(f"/v1/runs/{self._run}").raise_for_status().json()["status"]
        except httpx.HTTPError:
            return False
        has_ended = status not in {"running", "pending"}
        # The last death is counted while the fault is on: a killed process may not have been collected yet.
        if has_ended and all(member.is_alive for member in self.fleet.of("worker")):
            self.fleet.is_poisoned = False
            return True
        return False

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.fleet.urls()[0], headers={"Authorization": f"Bearer {key_of(REQUESTER)}"}, timeout=240
        )


class Faults:
    """All kinds of faults in turn, each after some calm."""

    def __init__(self, fleet: Fleet, calm: float, *, only_stops: bool = False) -> None:
        self.fleet, self.calm = fleet, calm
        self.done: list[Fault] = []
        self._kinds: Iterator[Breakage] = itertools.cycle(
            [StoppedAtRandom(fleet)]
            if only_stops
            else [
                Killed(fleet, "worker"),
                DatabaseRestarted(fleet),
                Killed(fleet, "service"),
                SlowReaders(fleet),
                Killed(fleet, "controller"),
                Stopped(fleet),
                GitAway(fleet),
                PoisonousRun(fleet),
                SessionsEnded(fleet),
            ]
        )
        self._on: Breakage | None = None
        self._has_ended = False
        self._begun = 0.0
        self._next = self._now() + calm
        self._lock = threading.Lock()

    def _now(self) -> float:
        return self.fleet.clock.now().timestamp()

    def turn(self) -> None:
        """Begin, end or await the end of a fault, as it is time."""
        if self._on is None:
            if self._now() >= self._next:
                self._begin(next(self._kinds))
        elif self._now() >= self._begun + self._on.seconds:
            self._finish(self._on)

    @property
    def is_on(self) -> bool:
        return self._on is not None

    @property
    def current(self) -> str | None:
        """The name of the fault that is on."""
        return self._on.name if self._on is not None else None

    def _begin(self, kind: Breakage) -> None:
        with self._lock:
            self._on, self._has_ended, self._begun = kind, False, self._now()
        kind.begin()

    def _finish(self, kind: Breakage) -> None:
        if not self._has_ended:
            kind.end()
            self._has_ended = True
        if kind.is_over():
            with self._lock:
                self.done.append(Fault(kind.name, self._begun, self._now(), kind.interrupts))
                self._on = None
            self._next = self._now() + self.calm

    def disturb(self, begun: float, failed: float) -> bool:
        """Return whether a request of this time may have met a fault."""
        with self._lock:
            if self._on is not None and failed >= self._begun:
                return True
            return any(fault.begun <= failed and begun <= fault.ended + SETTLE_SECONDS for fault in self.done)
