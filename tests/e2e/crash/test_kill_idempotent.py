"""A service that is killed at each write of a request with an idempotency key: asked again, it has started one run.

A sample of the writes here; all of them with ``make crash``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from databases import Server
from kneo_process import Machine, Process, eventually
from service_bench import serving
from sqlalchemy import Connection, event, func, select

from kneo.clock import SystemClock
from kneo.settings import HttpSettings
from kneo.store.connections import WRITE
from kneo.store.migrate import open_store
from kneo.store.tables import idempotency_keys, runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FUNCTIONS = """
import os, time
def effect(text):
    with open(os.path.join(os.path.dirname(__file__), "log"), "a") as log:
        log.write("did\\n")
    return text
def gated(text):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "open")):
        time.sleep(0.05)
    return text
"""
SAMPLED = (1, 2, 3)
MOST_WRITES = 40
ASKING_SECONDS = 240.0


def run_of(function: str) -> dict[str, object]:
    return {
        "input": "hi",
        "spec": {
            "version": "v1",
            "agent": {"name": "helper", "model": {"provider": "dummy", "name": "dummy"}},
            "workflow": {
                "type": "sequential",
                "name": "lab",
                "steps": [{"id": "one", "kind": "function", "ref": "one"}],
            },
            "components": {"functions": {"one": {"implementation": f"crash_functions.{function}"}}},
        },
    }


class CrashingMachine(Machine):
    """A machine whose service is killed at a write."""

    program: ClassVar = (str(Path(__file__).with_name("crashing_service.py")),)

    def serve(self, die_at: int = 0) -> Process:
        return self.start(str(die_at))


@pytest.fixture
def machine(migrated_url: str, tmp_path: Path) -> Iterator[CrashingMachine]:
    (tmp_path / "crash_functions.py").write_text(FUNCTIONS)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    machine = CrashingMachine(
        tmp_path, migrated_url, KNEO_SERV_IMPORT_ALLOW="crash_functions", PYTHONPATH=path, PYTHONUNBUFFERED="1"
    )
    yield machine
    machine.stop()


def ask(service: Process, key: str, function: str = "effect") -> httpx.Response | None:
    """Ask for a run; ``None`` where the service died before it answered."""
    try:
        return httpx.post(
            f"{service.url}/v1/runs",
            json=run_of(function),
            headers={"Idempotency-Key": key},
            timeout=ASKING_SECONDS,
        )
    except httpx.TransportError:
        return None


def count_of_runs(url: str) -> int:
    store = open_store(url, SystemClock())
    try:
        with store.read() as tx:
            return tx.connection.execute(select(func.count()).select_from(runs)).scalar_one()
    finally:
        store.close()


def check_killed_at(machine: CrashingMachine, url: str, number: int) -> bool:
    """Kill a service at a write and ask another one again; say whether the first one died before it answered."""
    before, key = count_of_runs(url), f"killed-at-{number}"
    first = machine.serve(number)
    first.popen.send_signal(signal.SIGUSR1)
    answered = ask(first, key)
    first.kill()
    second = machine.serve()
    try:
        again = ask(second, key)
        assert again is not None
        assert again.status_code == 200, again.text
        assert again.json()["status"] == "succeeded"
        assert count_of_runs(url) == before + 1
        if answered is not None:
            assert answered.status_code == 200, answered.text
            assert again.json() == answered.json()
        else:
            # And a third time the same, from what was stored.
            third = ask(second, key)
            assert third is not None
            assert third.json() == again.json()
            assert third.headers["idempotency-replayed"] == "true"
    finally:
        second.kill()
    return answered is None


def test_one_key_is_one_run_wherever_the_service_is_killed(
    machine: CrashingMachine, migrated_url: str, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--every-write", default=False):
        died = [check_killed_at(machine, migrated_url, number) for number in SAMPLED]
        assert any(died)
        return
    for number in range(1, MOST_WRITES):
        if not check_killed_at(machine, migrated_url, number):
            assert number > 2
            return
    pytest.fail(f"the service still wrote before it answered, after {MOST_WRITES} writes")


def test_a_service_killed_while_a_request_waits_for_its_run(machine: CrashingMachine, migrated_url: str) -> None:
    first = machine.serve()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(ask, first, "waits", "gated")
        eventually(lambda: count_of_runs(migrated_url) == 1)
        first.kill()
        assert waiting.result() is None
        second = machine.serve()
        again = pool.submit(ask, second, "waits", "gated")
        (machine.folder / "open").touch()
        answer = again.result()
    assert answer is not None
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert count_of_runs(migrated_url) == 1


@pytest.mark.parametrize("lost_at", [1, 2])
def test_a_database_that_is_away_leaves_no_key_in_progress(
    lost_at: int, postgres_server: Server, tmp_path: Path
) -> None:
    name = postgres_server.create()
    with serving(tmp_path, postgres_server.url(name), workers=0, http=HttpSettings(metrics=False)) as bench:
        engine, written = bench.store.engine, 0

        def lose(connection: Connection) -> None:
            nonlocal written
            if not connection.get_execution_options().get(WRITE):
                return
            written += 1
            if written == lost_at:
                with postgres_server._admin() as admin:
                    admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
                    ended = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s"
                    admin.execute(ended, [name])

        body = {**run_of("effect"), "async_mode": True}
        headers = {"Idempotency-Key": "away"}
        event.listen(engine, "commit", lose)
        lost = bench.client("operator").post("/runs", json=body, headers=headers)
        event.remove(engine, "commit", lose)
        with postgres_server._admin() as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        # What is lost at the second write is the stored answer alone.
        assert lost.status_code == (503 if lost_at == 1 else 202), lost.text
        again = bench.client("operator").post("/runs", json=body, headers=headers)
        assert again.status_code == 202, again.text
        third = bench.client("operator").post("/runs", json=body, headers=headers)
        assert third.json() == again.json()
        with bench.store.read() as tx:
            assert tx.connection.execute(select(func.count()).select_from(runs)).scalar_one() == 1
            bound = tx.connection.execute(select(idempotency_keys.c.subject)).scalars().all()
        assert list(bound) == [again.json()["run_id"]]
    postgres_server.drop(name)
