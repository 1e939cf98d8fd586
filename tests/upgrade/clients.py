"""Clients of a deployment during an update: they start runs, decide tasks at once or later, and read; each failure counts."""

from __future__ import annotations

import itertools
import queue
import threading
import uuid
from collections.abc import Mapping
from typing import Self, TypeAlias

import httpx
from kneo_process import PATIENCE_SECONDS, eventually
from soak.evidence import SentDecision, StartedRun
from soak.program import spec
from upgrade.deployment import Rotation

Json: TypeAlias = Mapping[str, object]

REQUESTER, REVIEWER, READER = "requester", "ann", "reader"
ROLES = {REQUESTER: "operator", REVIEWER: "reviewer", READER: "auditor"}

SPEC = spec("update")

REPEATED, REJECTED, LATER = 4, 7, 5
"""Of so many runs one is requested twice with its key, one is rejected, and one waits for the next part of the update."""

CONNECTIONS = httpx.Limits(keepalive_expiry=2)
"""Earlier versions close a connection that was idle for 5 seconds, which is also how long httpx keeps one: at a high load a request would
go into a connection that is being closed.
"""

PAUSE_SECONDS = 0.1
"""Time between two things that one client does, which leaves the processor to processes that start."""


def key_of(person: str) -> str:
    """Return the API key of a person."""
    return f"{person}-key-of-the-update-0123456789"


API_KEYS = ";".join(f"{name}:{key_of(name)}:{role}" for name, role in ROLES.items())


class RequestFailed(Exception):
    """A request was not answered with success."""


class Clients:
    """People and programs that use the services in rotation until a block ends.

    Args:
        rotation: The services.
        users: How many start runs and decide at the same time.
    """

    def __init__(self, rotation: Rotation, users: int) -> None:
        self.failures: list[str] = []
        self.started: list[StartedRun] = []
        self.sent: list[SentDecision] = []
        self.reads = 0
        self._rotation = rotation
        self._numbers = itertools.count(1)
        self._later: queue.SimpleQueue[tuple[int, Json]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._use) for _ in range(users)]
        self._threads.append(threading.Thread(target=self._read))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, runs: int) -> None:
        """Wait until so many more runs were started and all clients had a turn since."""
        started, reads = len(self.started) + runs, self.reads
        eventually(lambda: self.failures or (len(self.started) >= started and self.reads > reads))
        self.check()

    def check(self) -> None:
        assert self.failures == [], self.failures

    def decide_waiting(self) -> int:
        """Decide the tasks that wait since an earlier part of the update; return how many there were."""
        count = self._later.qsize()
        with self._client(REVIEWER) as client:
            for _ in range(count):
                self._decide(client, *self._later.get())
        self.check()
        return count

    def _use(self) -> None:
        with self._client(REQUESTER) as requester, self._client(REVIEWER) as reviewer:
            try:
                while not self._stop.is_set():
                    self._start_run(requester, reviewer, next(self._numbers))
                    self._stop.wait(PAUSE_SECONDS)
            except RequestFailed:
                return

    def _start_run(self, requester: httpx.Client, reviewer: httpx.Client, number: int) -> None:
        text, key = f"run {number}", uuid.uuid4().hex
        body = {"input": text, "spec": SPEC, "async_mode": number % 2 == 0}
        found = self._send(requester, "POST", "/runs", body, key)
        run_ids = [str(found["run_id"])]
        if number % REPEATED == 0:
            # A client that lost the response asks again.
            run_ids.append(str(self._send(requester, "POST", "/runs", body, key)["run_id"]))
        self.started.append(StartedRun(text, tuple(run_ids)))
        run = eventually(lambda: self._paused(requester, run_ids[0]))
        if number % LATER == 0:
            self._later.put((number, run))
        else:
            self._decide(reviewer, number, run)

    def _paused(self, client: httpx.Client, run_id: str) -> Json | None:
        run = self._send(client, "GET", f"/runs/{run_id}")
        return run if run["status"] == "paused" else None

    def _decide(self, client: httpx.Client, number: int, run: Json) -> None:
        metadata = run["metadata"]
        assert isinstance(metadata, dict)
        request_id = metadata["pending_human_request"]["request_id"]
        task_id, decision = str(run["continuation_id"]), "rejected" if number % REJECTED == 0 else "approved"
        body = {"request_id": request_id, "decision": decision}
        self._send(client, "POST", f"/human-tasks/{task_id}/resume", body, uuid.uuid4().hex)
        self.sent.append(SentDecision(task_id, REVIEWER, decision, 200))

    def _read(self) -> None:
        with self._client(READER) as client:
            try:
                while not self._stop.is_set():
                    for path in ("/runs?limit=20", "/human-tasks?limit=20", "/audit-events?limit=20"):
                        self._send(client, "GET", path)
                    self.reads += 1
                    self._stop.wait(PAUSE_SECONDS)
            except RequestFailed:
                return

    def _client(self, person: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key_of(person)}"}
        return httpx.Client(headers=headers, timeout=PATIENCE_SECONDS, limits=CONNECTIONS)

    def _send(self, client: httpx.Client, method: str, path: str, body: Json | None = None, key: str = "") -> Json:
        """Send a request once to the next service in rotation."""
        headers = {"Idempotency-Key": key} if key else {}
        with self._rotation.service() as url:
            try:
                response = client.request(method, f"{url}/v1{path}", json=body, headers=headers)
            except httpx.HTTPError as error:
                self.failures.append(f"{method} {path}: {error!r}")
                raise RequestFailed from error
        if not response.is_success:
            self.failures.append(f"{method} {path}: {response.status_code} {response.text[:500]}")
            raise RequestFailed
        found: Json = response.json()
        return found
