"""The users of a soak: clients that start runs, people who decide, and releases that are promoted meanwhile."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import httpx
from soak.evidence import SentDecision, StartedRun
from soak.faults import Faults
from soak.fleet import BUNDLE, PEOPLE, REQUESTER, Fleet, key_of
from soak.pace import Pace

PATIENCE_SECONDS = 120.0
"""Time in which a client sends a request again until a service responds."""

STARTERS = 12

SESSIONS = 8
"""Sessions in which one person decides at the same time."""

LEFT_ALONE = 50
"""Of this many tasks one stays undecided: its run waits."""

CONTESTED = 10
"""Of this many tasks one is decided by every person, the others by one person each."""

REJECTED = 0.15
"""Share of decisions that reject."""

PAGE = 100
READ_SECONDS = 0.5
"""The pause of a person who has read the whole inbox."""

REREAD_SECONDS = 30.0
"""The interval at which a person reads the inbox from its beginning: older tasks may have become visible, or stayed undecided."""


Handed: TypeAlias = "queue.Queue[Mapping[str, object] | None]"
"""Tasks that a person has read and not decided; ``None`` ends a session."""


class Response(NamedTuple):
    """Status and body of a response; status 0 where no service responded in time."""

    status: int
    body: Mapping[str, object]


class Client:
    """One user: each request goes to the next service, and again with its key until one responds."""

    def __init__(self, fleet: Fleet, faults: Faults, person: str, failures: list[str], over: threading.Event) -> None:
        self.fleet, self.faults, self.failures, self.over = fleet, faults, failures, over
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key_of(person)}"}, timeout=240)
        self._turn = itertools.count(random.randrange(2))

    def get(self, path: str, **query: str) -> Mapping[str, object] | None:
        """Read something once; ``None`` where the service does not respond."""
        begun = self.fleet.clock.now().timestamp()
        try:
            response = self._http.get(self._address(path), params=query)
        except httpx.HTTPError as error:
            self._note(begun, f"GET {path}: {error!r}")
            return None
        if response.status_code != 200:
            self._note(begun, f"GET {path}: {response.status_code} {response.text[:200]}")
            return None
        return response.json()

    def post(self, path: str, body: Mapping[str, object], *, key: str | None = None) -> Response:
        """Send a request until a service responds; what says that it did not work is sent again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            begun = self.fleet.clock.now().timestamp()
            try:
                response = self._http.post(self._address(path), json=body, headers=headers)
                if response.status_code < 500 and response.status_code not in {408, 429} and not _in_progress(response):
                    return Response(response.status_code, response.json())
                if not _in_progress(response):
                    self._note(begun, f"POST {path}: {response.status_code} {response.text[:200]}")
            except httpx.HTTPError as error:
                self._note(begun, f"POST {path}: {error!r}")
            if time.monotonic() > deadline:
                return Response(0, {})
            time.sleep(0.2)

    def _address(self, path: str) -> str:
        urls = self.fleet.urls()
        return f"{urls[next(self._turn) % len(urls)]}/v1{path}"

    def _note(self, begun: float, text: str) -> None:
        if not self.over.is_set() and not self.faults.disturb(begun, self.fleet.clock.now().timestamp()):
            self.failures.append(text)

    def close(self) -> None:
        self._http.close()


def _in_progress(response: httpx.Response) -> bool:
    """Return whether another request with the same key is not done."""
    return response.status_code == 409 and "idempotency" in response.text


class Load:
    """The users, each in a thread."""

    def __init__(self, fleet: Fleet, faults: Faults) -> None:
        self.fleet, self.faults = fleet, faults
        self.failures: list[str] = []
        self.started: list[StartedRun] = []
        self.sent: list[SentDecision] = []
        self.ordered = self.late = 0
        self.releases = 0
        self.version = "1.0.0"
        self.left_alone: set[str] = set()
        self._taken: dict[str, set[str]] = {person: set() for person in PEOPLE}
        """The tasks that each person has decided, or is going to."""
        self._orders: queue.Queue[int] = queue.Queue(maxsize=STARTERS * 4)
        self._stop_starting, self._stop, self.over = threading.Event(), threading.Event(), threading.Event()
        self._threads = [
            *(threading.Thread(target=self._start_runs, daemon=True) for _ in range(STARTERS)),
            *(thread for person in PEOPLE for thread in self._people(person)),
            threading.Thread(target=self._release, daemon=True),
        ]

    def client(self, person: str) -> Client:
        return Client(self.fleet, self.faults, person, self.failures, self.over)

    # ---- runs -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def order(self) -> None:
        """Let one more run be started; counts it as late where the clients are behind."""
        self.ordered += 1
        try:
            self._orders.put_nowait(self.ordered)
        except queue.Full:
            self.late += 1

    def calibrate(self, seconds: float) -> float:
        """Start runs as fast as the services respond, and return half of the runs per second that ended."""
        deadline = time.monotonic() + seconds
        before, begun = len(self.sent), time.monotonic()
        while time.monotonic() < deadline:
            if self._orders.qsize() < STARTERS:
                self.order()
            else:
                time.sleep(0.005)
        return max(1.0, 0.5 * (len(self.sent) - before) / (time.monotonic() - begun))

    def _start_runs(self) -> None:
        client = self.client(REQUESTER)
        while not (self._stop_starting.is_set() and self._orders.empty()):
            try:
                number = self._orders.get(timeout=0.2)
            except queue.Empty:
                continue
            self._start_run(client, number)
        client.close()

    def _start_run(self, client: Client, number: int) -> None:
        text = f"soak {number}"
        body = {"input": text, "bundle": BUNDLE, "environment": "prod", "async_mode": number % 2 == 0}
        key = uuid.uuid4().hex
        found = client.post("/runs?wait=20s", body, key=key)
        run_ids = self._acknowledged(found)
        if run_ids and number % 10 == 0:
            # A client that lost the response asks again.
            run_ids += self._acknowledged(client.post("/runs?wait=20s", body, key=key))
        self.started.append(StartedRun(text, run_ids))

    def _acknowledged(self, found: Response) -> tuple[str, ...]:
        if 200 <= found.status < 300:
            return (str(found.body["run_id"]),)
        if found.status:
            self.failures.append(f"POST /runs: {found.status} {found.body}")
        return ()

    # ---- people ---------------------------------------------------------------------------------------------------

    def _people(self, person: str) -> Iterator[threading.Thread]:
        """Return the threads of one person, who reads the inbox in one session and decides in others."""
        tasks: Handed = queue.Queue(maxsize=PAGE)
        yield threading.Thread(target=self._read_inbox, args=(person, tasks), daemon=True)
        for number in range(SESSIONS):
            yield threading.Thread(target=self._decide, args=(person, number, tasks), daemon=True)

    def _read_inbox(self, person: str, tasks: Handed) -> None:
        """Hand each task that this person decides to a session, in the order of the inbox."""
        client = self.client(person)
        page: dict[str, str] = {}
        taken = self._taken[person]
        reread = time.monotonic() + REREAD_SECONDS
        while not self._stop.is_set():
            found = client.get("/human-tasks", status="pending", environment="prod", limit=str(PAGE), **page)
            for task in _items(found, "tasks"):
                task_id = str(task["id"])
                if is_left_alone(task_id):
                    self.left_alone.add(task_id)
                elif decides(person, task_id) and task_id not in taken:
                    taken.add(task_id)
                    tasks.put(task)
            if found is not None and found["next_after"]:
                page = {"after": str(found["next_after"])}
            elif time.monotonic() > reread:
                page, reread = {}, time.monotonic() + REREAD_SECONDS
            else:
                self._stop.wait(READ_SECONDS)
        for _ in range(SESSIONS):
            tasks.put(None)
        client.close()

    def _decide(self, person: str, number: int, tasks: Handed) -> None:
        client, chance = self.client(person), random.Random(f"{person} {number}")
        while (task := tasks.get()) is not None:
            self._decide_one(client, person, task, chance)
        client.close()

    def _decide_one(self, client: Client, person: str, task: Mapping[str, object], chance: random.Random) -> None:
        decision = "rejected" if chance.random() < REJECTED else "approved"
        body = {"request_id": task["pending_human_request_id"], "decision": decision}
        found = client.post(f"/human-tasks/{task['id']}/resume", body, key=uuid.uuid4().hex)
        if found.status not in {0, 200, 409}:
            self.failures.append(f"{person} {decision} {task['id']}: {found.status} {found.body}")
        if not found.status:
            self._taken[person].discard(str(task["id"]))
        self.sent.append(SentDecision(str(task["id"]), person, decision, found.status))

    # ---- releases -------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        client = self.client(PEOPLE[-1])
        while not self._stop_starting.wait(3):
            version = f"1.{self.releases + 1}.0"
            self.fleet.declare(version)
            self.version = version
            while not self.fleet.push():
                time.sleep(0.5)
            if not self._promote(client, version):
                break
            self.releases += 1
        client.close()

    def _promote(self, client: Client, version: str) -> bool:
        """Approve a version where it waits, and wait until prod serves it; return whether it does."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            waiting = _items(client.get("/promotions", environment="prod", phase="waiting"), "promotions")
            for change in waiting:
                if change.get("version") == version:
                    client.post(f"/promotions/{change['id']}/approve", {})
            environments = _items(client.get("/environments"), "environments")
            served = [item for item in environments if item["name"] == "prod"]
            if served and any(release["version"] == version for release in served[0]["releases"]):
                return True
            time.sleep(0.5)
        return False

    # ---- the pace -------------------------------------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """Return how many runs were ordered, started and decided, and how many wait for a decision."""
        decided = len({sent.task_id for sent in tuple(self.sent) if sent.status == 200})
        started = sum(bool(run.run_ids) for run in tuple(self.started))
        return Pace(time.monotonic(), self.ordered, started, decided, started - decided - len(self.left_alone))

    # ---- the end --------------------------------------------------------------------------------------------------

    def finish_starting(self) -> None:
        """Let the clients send what was ordered, and the last release be promoted."""
        self._stop_starting.set()
        for thread in (*self._threads[:STARTERS], self._threads[-1]):
            thread.join()

    def finish(self) -> None:
        """Let the people leave."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.over.set()


def is_left_alone(task_id: str) -> bool:
    """Return whether people leave a task alone."""
    return zlib.crc32(task_id.encode()) % LEFT_ALONE == 0


def decides(person: str, task_id: str) -> bool:
    """Return whether a person decides a task: every person where it is contested, one otherwise."""
    number = zlib.crc32(task_id.encode(), 1)
    return number % CONTESTED == 0 or PEOPLE[number // CONTESTED % len(PEOPLE)] == person


def _items(found: Mapping[str, object] | None, name: str) -> list[dict[str, object]]:
    return list(found[name]) if found is not None else []
