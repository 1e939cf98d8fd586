"""Processes on a PostgreSQL server with few connections, and behind a proxy that pools transactions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from databases import Server
from kneo_process import Machine, eventually
from sqlalchemy import make_url
from transaction_pooler import pooling

from kneo.sandbox.levels import host_level


@pytest.fixture
def machine(tmp_path: Path, postgres_url: str) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", postgres_url)
    yield made
    made.stop()


def test_a_worker_starts_once_the_server_has_connections_for_it(
    machine: Machine, postgres_server: Server, postgres_url: str
) -> None:
    database = make_url(postgres_url).database
    folder = postgres_server.folder
    with psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE ROLE few_{database} LOGIN CONNECTION LIMIT 25")
        admin.execute(f'ALTER DATABASE "{database}" OWNER TO few_{database}')
    url = f"postgresql+psycopg://few_{database}@/{database}?host={folder}"
    machine.env["KNEO_SERV_DATABASE_URL"] = url
    machine.kneo("maintenance", "migrate")
    with ExitStack() as holding:
        for _ in range(25):
            holding.enter_context(psycopg.connect(f"host={folder} user=few_{database} dbname={database}"))
        worker = machine.start("worker", answers=False)
        eventually(lambda: "too many connections" in worker.log.read_text())
        assert worker.popen.poll() is None
    eventually(
        lambda: (
            machine.json("doctor", expect=None) and "A worker is alive" in machine.kneo("doctor", expect=None).stdout
        )
    )
    assert worker.terminate() == 0, worker.log.read_text()


UNDER_A_FILTER = """
from kneo.sandbox import confine
confine._prctl(confine._PR_SET_NO_NEW_PRIVS, 1)
confine.restrict_calls(confine.call_filter(confine.refuse("landlock_create_ruleset")))
from kneo.cli.main import main
main()
"""


@pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)
def test_doctor_shows_the_level_of_sandboxes_of_each_worker(machine: Machine, tmp_path: Path) -> None:
    machine.kneo("maintenance", "migrate")
    filtered = Machine(tmp_path / "filtered", machine.env["KNEO_SERV_DATABASE_URL"])
    filtered.program = ("-c", UNDER_A_FILTER)  # type: ignore[misc]
    filtered.begin = subprocess.Popen  # type: ignore[misc]
    workers = [machine.start("worker", answers=False), filtered.start("worker", answers=False)]

    def shown() -> str:
        [check] = [each for each in machine.json("doctor", expect=None)["checks"] if each["check"] == "worker"]
        return str(check["message"])

    try:
        eventually(lambda: shown().count(f"{platform.node()[:40]}:") == 2)
        assert shown().count("(kernel)") == shown().count("(process)") == 1
    finally:
        for worker in workers:
            worker.kill()
    eventually(lambda: "No worker is alive" in shown())


def test_a_proxy_that_pools_transactions_is_refused_with_the_reason(
    machine: Machine, postgres_server: Server, postgres_url: str
) -> None:
    machine.kneo("maintenance", "migrate")
    database = make_url(postgres_url).database
    with pooling(postgres_server.folder) as pooler:
        machine.env["KNEO_SERV_DATABASE_URL"] = f"postgresql+psycopg://postgres@127.0.0.1:{pooler.port}/{database}"
        for command in (["worker"], ["maintenance", "migrate"], ["runs", "list"]):
            refused = machine.kneo(*command, expect=1)
            assert "pools transactions" in refused.stderr
        (check,) = [check for check in machine.json("doctor", expect=1)["checks"] if check["check"] == "database"]
        assert check["level"] == "error"
        assert "pools transactions" in check["message"]
