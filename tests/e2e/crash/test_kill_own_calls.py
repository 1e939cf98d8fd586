"""A service that is killed at the writes of a call which its caller makes itself: one call, one decision, begun once, one result.

The writes of the request that makes the call, of the run, of the decision, of ``begin`` and of the report. A sample here; all of them
with ``make crash``.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from config_repo import ConfigRepo
from installation_key import SERVICE_KEY, find_key
from kneo_process import Machine, Process, eventually
from service_bench import Json

from kneo.cli.serve.controller import Repository, make_controller
from kneo.clock import SystemClock
from kneo.records.task import TaskStatus
from kneo.settings import from_env
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.run_filter import RunFilter

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.both_databases]

SAMPLED = (
    ("make", "before", 1),
    ("decide", "after", 1),
    ("begin", "before", 1),
    ("begin", "after", 1),
    ("report", "after", 1),
)
MOST_WRITES = 80
"""Writes after which a call has to be over."""

SPEC: Json = {
    "version": "v1",
    "targets": ["call"],
    "agent": {"name": "payments", "tools": {"include": ["delete_branch"], "permissions": {}}},
    "tools": {
        "delete_branch": {
            "description": "Delete a branch.",
            "parameters": {"type": "object", "properties": {"branch": {"type": "string"}}, "required": ["branch"]},
            "capabilities": ["privileged"],
            "review": {"before": {"human": "finance"}, "external": {"human": "caller"}},
        }
    },
    "components": {"humans": {"finance": {"description": "May it be done?"}}},
}


class CrashingMachine(Machine):
    """A machine whose service is killed at a write."""

    program: ClassVar = (str(Path(__file__).with_name("crashing_service.py")),)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    opened = open_store(migrated_url, SystemClock(), find_key)
    yield opened
    opened.close()


@pytest.fixture
def machine(store: Store, migrated_url: str, tmp_path: Path) -> Iterator[CrashingMachine]:
    repo = ConfigRepo(tmp_path / "repo")
    repo.bundle("payments", "1.0.0", SPEC)
    repo.environment("prod", {"payments": "1.0.0"}, protocols={"calls": [{"bundle": "payments"}]})
    repo.commit("Serve calls")
    settings = from_env({"HOME": str(tmp_path), "KNEO_SERV_DATABASE_URL": migrated_url}, tmp_path)
    source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
    outcome = make_controller(settings, store, source).run_once()
    assert outcome.outcomes["prod"].state == "Ready", outcome
    made = CrashingMachine(
        tmp_path / "machine",
        migrated_url,
        KNEO_SERV_SERVICE_KEY=SERVICE_KEY.dump().decode(),
        KNEO_SERV_API_KEYS="ci-bot:caller-key:caller;ann:reviewer-key:reviewer",
        PYTHONPATH=str(Path(__file__).parent),
        PYTHONUNBUFFERED="1",
    )
    yield made
    made.stop()


class OwnCall:
    """A call that its caller makes itself, through services of which the first dies at a write that it makes from a request on.

    The request that gets no response is sent again to another service.
    """

    def __init__(self, machine: CrashingMachine, killed_from: str, when: str, number: int) -> None:
        self.machine, self.killed_from = machine, killed_from
        self.key, self.id, self.died = str(uuid.uuid4()), "", False
        self.service: Process = machine.start(str(number), when)

    def go(self) -> Json:
        """Go through the call, and return it as it ended."""
        body = {"environment": "prod", "bundle": "payments", "tool": "delete_branch", "arguments": {"branch": self.key}}
        made = self.send("make", "caller", "/calls?wait=1s", body, key=f"{self.key}-make")
        assert made.status_code == 200, made.text
        self.id = made.json()["id"]
        question = eventually(lambda: self.read()["questions"])[0]["id"]
        decided = self.send(
            "decide", "reviewer", f"/human-tasks/{question}/resume", {"decision": "approved"}, key=f"{self.key}-decide"
        )
        assert decided.status_code in {200, 202}, decided.text
        eventually(lambda: self.read()["status"] == "allowed")
        begun = self.send("begin", "caller", f"/calls/{self.id}/begin", {})
        if begun.status_code == 200:
            assert begun.json()["arguments"] == {"branch": self.key}
            report = {"result": "deleted"}
        else:
            # It was begun, and nobody knows with what: the caller makes nothing.
            assert (begun.status_code, begun.json()["error"], self.died) == (409, "call_begun", True), begun.text
            report = {"error": "interrupted"}
        again = self.send("again", "caller", f"/calls/{self.id}/begin", {})
        assert again.json()["error"] == "call_begun"
        reported = self.send("report", "caller", f"/calls/{self.id}/result", report, key=f"{self.key}-report")
        assert reported.status_code == 200, reported.text
        ended = eventually(lambda: (now := self.read())["status"] == "ended" and now)
        assert ended["outcome"] == ("success" if "result" in report else "failed"), ended
        self.service.kill()
        return ended

    def send(self, request: str, role: str, path: str, body: Json, *, key: str = "") -> httpx.Response:
        """Send a request, and once more where the service died before it answered."""
        if request == self.killed_from:
            self.service.popen.send_signal(signal.SIGUSR1)
        headers = {"Authorization": f"Bearer {role}-key", **({"Idempotency-Key": key} if key else {})}
        return self._answered(lambda url: httpx.post(f"{url}/v1{path}", json=body, headers=headers, timeout=240))

    def read(self) -> Json:
        """Read the call."""
        headers = {"Authorization": "Bearer caller-key"}
        return self._answered(lambda url: httpx.get(f"{url}/v1/calls/{self.id}", headers=headers, timeout=240)).json()

    def _answered(self, ask: Callable[[str], httpx.Response]) -> httpx.Response:
        try:
            return ask(self.service.url)
        except httpx.TransportError:
            assert not self.died
            self.died = True
            self.service.kill()
            self.service = self.machine.start("0")
            return ask(self.service.url)


def check(store: Store, call: OwnCall, known: set[str]) -> None:
    """Check that one call was made, decided once and reported once."""
    with store.read() as tx:
        made = {run.id for run in runs.list_runs(tx, RunFilter(target=CALL_TARGET), sort_by="id", limit=500)} - known
        decided = [task.position for task in tasks.of_run(tx, call.id, TaskStatus) if task.decision is not None]
    assert made == {call.id}
    assert sorted(decided) == ["external", "tool"]
    known |= made


def test_a_call_of_the_caller_is_begun_and_reported_once_where_the_service_is_killed(
    machine: CrashingMachine, store: Store, request: pytest.FixtureRequest
) -> None:
    known: set[str] = set()
    if not request.config.getoption("--every-write", default=False):
        for killed_from, when, number in SAMPLED:
            call = OwnCall(machine, killed_from, when, number)
            call.go()
            assert call.died, (killed_from, when, number)
            check(store, call, known)
        return
    for when in ("before", "after"):
        for number in range(1, MOST_WRITES):
            call = OwnCall(machine, "make", when, number)
            call.go()
            check(store, call, known)
            if not call.died:
                assert number > 10, when
                break
        else:
            pytest.fail(f"a call still wrote after {MOST_WRITES} writes")
