"""An upgrade and a way back without a failed request: processes of two versions on one PostgreSQL database, under load.

The later version is this one with one more migration, in a folder of its own. All processes have ``KNEO_SERV_MIGRATE=never``; the
command ``kneo maintenance migrate`` of the later version migrates the database while the earlier one uses it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import httpx
import pytest
from kneo_process import Machine, Process, eventually

import kneo
from kneo.store.migrate import COMPATIBLE_FROM, HEAD

pytestmark = pytest.mark.e2e

LATER = "kneo_9999"
MIGRATION = f'''
"""One more table, column and index."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "{LATER}", "{HEAD}"


def upgrade() -> None:
    op.create_table("later_things", sa.Column("name", sa.String(40), primary_key=True))
    for table in ("runs", "tasks", "audit_events"):
        op.add_column(table, sa.Column("later", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_later_runs", "runs", ["later"])
'''

AGENT = {"name": "helper", "model": {"provider": "dummy", "name": "dummy"}}
STEPS = [{"id": "draft", "kind": "agent", "ref": "writer"}]
GATE = [{"id": "approve", "kind": "human", "ref": "editor"}]


def spec(*steps: dict[str, object]) -> dict[str, object]:
    components = {"agents": {"writer": {**AGENT, "name": "writer"}}, "humans": {"editor": {"description": "Publish?"}}}
    workflow = {"type": "sequential", "name": "flow", "steps": list(steps)}
    return {"version": "v1", "agent": AGENT, "workflow": workflow, "components": components}


class LaterMachine(Machine):
    """Processes of the later version."""

    begin: ClassVar = staticmethod(subprocess.Popen)

    def migrate(self) -> str:
        command = [sys.executable, "-m", "kneo.cli.main", "maintenance", "migrate"]
        return subprocess.check_output(command, cwd=self.folder, env=self.env, text=True, timeout=240)


class Fleet:
    """Services and workers, and people who use them all the time, each request at a service that is in rotation."""

    def __init__(self) -> None:
        self.services: list[Process] = []
        self.workers: list[Process] = []
        self.failures: list[str] = []
        self.done: list[str] = []
        self.waiting: list[dict[str, str]] = []
        self._turn = 0
        self._lock = threading.Lock()
        self._in_flight: dict[str, int] = {}
        self._stop = threading.Event()
        self._people = [threading.Thread(target=self._use) for _ in range(2)]

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """Send a request to the next service in rotation; every answer but a success is a failure."""
        with self._lock:
            self._turn += 1
            url = self.services[self._turn % len(self.services)].url
            self._in_flight[url] = self._in_flight.get(url, 0) + 1
        try:
            answer = httpx.post(f"{url}/v1{path}", json=body, timeout=240)
            if answer.status_code != 200:
                self.failures.append(f"{path}: {answer.status_code} {answer.text}")
            return answer.json()
        except httpx.HTTPError as error:
            self.failures.append(f"{path}: {error!r}")
            raise
        finally:
            with self._lock:
                self._in_flight[url] -= 1

    def start_run(self, *steps: dict[str, object]) -> dict[str, object]:
        return self.post("/runs", {"input": "hi", "spec": spec(*steps)})

    def approve(self, run: dict[str, object]) -> dict[str, object]:
        request = run["metadata"]["pending_human_request"]["request_id"]
        path = f"/human-tasks/{run['continuation_id']}/resume"
        return self.post(path, {"request_id": request, "decision": "approved"})

    def _use(self) -> None:
        while not self._stop.is_set():
            try:
                run = self.start_run(*STEPS, *GATE)
                self.done.append(str(self.approve(run)["status"]))
            except (httpx.HTTPError, KeyError) as error:
                self.failures.append(repr(error))
                return

    def __enter__(self) -> Self:
        for person in self._people:
            person.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for person in self._people:
            person.join(240)

    def more_is_done(self) -> None:
        """Wait until runs that were started from now on have ended."""
        before = len(self.done)
        eventually(lambda: len(self.done) >= before + 3 or self.failures)
        assert self.failures == []

    def replace_service(self, old: Process, machine: Machine) -> None:
        """Replace a service: take it out of rotation, let it finish its requests and stop it."""
        new = serve(machine)
        with self._lock:
            self.services[self.services.index(old)] = new
        eventually(lambda: self._in_flight.get(old.url, 0) == 0)
        assert old.terminate() == 0, old.log.read_text()
        self.more_is_done()

    def replace(self, machine: Machine) -> None:
        """Replace each process by one of a machine, one after the other, as a rolling update does."""
        for old in list(self.services):
            self.replace_service(old, machine)
        for old in list(self.workers):
            self.workers[self.workers.index(old)] = work(machine)
            assert old.terminate() == 0, old.log.read_text()
            self.more_is_done()


def serve(machine: Machine) -> Process:
    process = machine.start("service", "serve", "--port", "0", "--workers", "0")
    ready = lambda: httpx.get(f"{process.url}/readyz", timeout=240).status_code == 200  # noqa: E731
    eventually(ready)
    return process


def work(machine: Machine) -> Process:
    return machine.start("worker", answers=False)


@pytest.fixture
def machines(tmp_path: Path, postgres_url: str) -> Iterator[tuple[Machine, LaterMachine]]:
    program = tmp_path / "later"
    shutil.copytree(Path(kneo.__file__).parent, program / "kneo", ignore=shutil.ignore_patterns("__pycache__"))
    store = program / "kneo" / "store"
    source = (store / "migrate.py").read_text()
    assert f'\nHEAD = "{HEAD}"' in source
    (store / "migrate.py").write_text(source.replace(f'\nHEAD = "{HEAD}"', f'\nHEAD = "{LATER}"'))
    (store / "migrations" / "versions" / f"{LATER}_later.py").write_text(MIGRATION)
    earlier = Machine(tmp_path / "work", postgres_url, KNEO_SERV_MIGRATE="never")
    later = LaterMachine(tmp_path / "work-later", postgres_url, KNEO_SERV_MIGRATE="never", PYTHONPATH=str(program))
    yield earlier, later
    earlier.stop()
    later.stop()


def test_a_database_in_use_is_upgraded_and_taken_back_without_a_failed_request(
    machines: tuple[Machine, LaterMachine],
) -> None:
    earlier, later = machines
    assert "schema_too_old" in str(earlier.json("runs", "list", expect=1))
    earlier.kneo("maintenance", "migrate")
    assert earlier.json("maintenance", "migrate")["from"] == HEAD
    fleet = Fleet()
    fleet.services = [serve(earlier), serve(earlier)]
    fleet.workers = [work(earlier)]
    with fleet:
        fleet.more_is_done()
        old_run = fleet.start_run(*STEPS, *GATE)
        assert f"Migrated the database from {HEAD} to {LATER}" in later.migrate()
        fleet.more_is_done()
        planned = earlier.json("maintenance", "migrate", "--dry-run")
        assert planned == {"from": LATER, "to": LATER, "migrations": {}, "compatible_from": COMPATIBLE_FROM}
        # A replica of the earlier version that restarts during the update.
        fleet.replace_service(fleet.services[0], earlier)
        fleet.replace(later)
        new_run = fleet.start_run(*STEPS, *GATE)
        assert fleet.approve(old_run)["status"] == "succeeded"
        fleet.replace(earlier)
        assert fleet.approve(new_run)["status"] == "succeeded"
    assert fleet.failures == []
    assert set(fleet.done) == {"succeeded"}
    verified: Callable[[], bool] = lambda: bool(earlier.json("audit", "verify", expect=None).get("valid"))  # noqa: E731
    eventually(verified)
