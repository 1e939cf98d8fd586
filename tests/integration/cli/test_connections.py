"""Processes on a PostgreSQL server with few connections, and behind a proxy that pools transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from databases import Server
from kneo_process import Machine, eventually
from sqlalchemy import make_url
from transaction_pooler import pooling


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
