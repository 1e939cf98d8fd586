"""How processes start: whose port another process holds, and with variables that are no settings."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine
from sqlalchemy import create_engine, inspect
from warm import run_python


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", f"sqlite:///{tmp_path / 'kneo.sqlite'}")


@pytest.mark.parametrize("command", [("up",), ("service", "serve"), ("service", "serve", "--reload")])
def test_a_taken_port_is_named_before_anything_starts(
    machine: Machine, taken: int, tmp_path: Path, command: tuple[str, ...]
) -> None:
    refused = machine.kneo(*command, "--port", str(taken), expect=5)
    assert f"127.0.0.1:{taken} is in use" in refused.stderr
    assert f"lsof -nP -iTCP:{taken} -sTCP:LISTEN" in refused.stderr
    assert "--port" in refused.stderr
    assert "Kneo is up" not in refused.stdout
    assert not (tmp_path / "kneo.sqlite").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("worker",),
        ("controller", "run", "--repo", "https://127.0.0.1:9/config.git", "--trust-root", "sha256:" + "0" * 64),
    ],
)
def test_a_taken_port_of_the_probes_is_named_before_anything_starts(
    machine: Machine, taken: int, tmp_path: Path, command: tuple[str, ...]
) -> None:
    machine.env["KNEO_SERV_METRICS_PORT"] = str(taken)
    refused = machine.kneo(*command, expect=5)
    assert f":{taken} is in use" in refused.stderr
    assert "KNEO_SERV_METRICS_PORT" in refused.stderr
    assert not (tmp_path / "kneo.sqlite").exists()


def test_an_address_of_another_machine_is_refused_before_anything_starts(machine: Machine, tmp_path: Path) -> None:
    machine.env["KNEO_SERV_ALLOW_ANONYMOUS"] = "true"
    refused = machine.kneo("service", "serve", "--host", "192.0.2.1", expect=2)
    assert "192.0.2.1" in refused.stderr
    assert "--host" in refused.stderr
    assert "defect" not in refused.stderr
    assert not (tmp_path / "kneo.sqlite").exists()


@pytest.mark.parametrize(
    "command",
    [("up",), ("service", "serve"), ("worker",), ("controller", "run", "--repo", "."), ("sdk", "serve", "missing")],
)
def test_a_process_that_starts_warns_of_variables_that_are_no_settings(
    machine: Machine, taken: int, command: tuple[str, ...]
) -> None:
    machine.env |= {"KNEO_SERV_RETENTON_RUNS_DAYS": "TOPSECRET", "KNEO_SERV_METRICS_PORT": str(taken)}
    port = ("--port", str(taken)) if command[0] in {"up", "service"} else ()
    ended = machine.kneo(*command, *port, expect=None)
    assert ended.returncode != 0
    lines = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    [warned] = [line for line in lines if line["level"] == "warning"]
    assert warned["message"] == (
        "KNEO_SERV_RETENTON_RUNS_DAYS is not a setting and has no effect; did you mean KNEO_SERV_RETENTION_RUNS_DAYS?"
    )
    assert "TOPSECRET" not in ended.stderr


@pytest.mark.parametrize("command", ["up", "controller run"])
def test_a_repository_without_a_pinned_trust_root_is_named_by_its_folder(machine: Machine, command: str) -> None:
    refused = machine.kneo(*command.split(), "--repo", ".", expect=2)
    assert f"No trust root is pinned for the repository {machine.folder}." in refused.stderr
    remote = machine.kneo(*command.split(), "--repo", "https://git.example.org/config.git", expect=2)
    assert "for the repository https://git.example.org/config.git." in remote.stderr
    assert "--trust-root" in remote.stderr


FLOWS = """
import os
from kneo.sdk.db.postgres import PostgresDb
from kneo.sdk.durable import flow

@flow(name="pay", database=PostgresDb(os.environ["KNEO_SERV_DATABASE_URL"]))
def pay(text):
    return text
"""


@pytest.mark.parametrize(
    "command",
    [
        ("up", "--port", "0"),
        ("service", "serve", "--port", "0"),
        ("service", "serve", "--port", "0", "--workers", "0"),
        ("worker",),
        ("controller", "run", "--repo", "https://127.0.0.1:9/config.git", "--trust-root", "sha256:" + "0" * 64),
        (
            "controller",
            "run",
            "--once",
            "--repo",
            "https://127.0.0.1:9/config.git",
            "--trust-root",
            "sha256:" + "0" * 64,
        ),
        ("mcp", "serve", "--env", "prod"),
        ("sdk", "serve", "flows.py"),
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_on_postgresql_no_process_starts_without_a_service_key(
    tmp_path: Path, postgres_url: str, command: tuple[str, ...]
) -> None:
    machine = Machine(tmp_path / "machine", postgres_url, KNEO_SERV_SERVICE_KEY="")
    (machine.folder / "flows.py").write_text(FLOWS)
    refused = machine.kneo(*command, expect=1)
    assert "KNEO_SERV_SERVICE_KEY is not set" in refused.stderr
    assert "kneo keys generate --output service.pem" in refused.stderr
    assert "Kneo is up" not in refused.stdout
    engine = create_engine(postgres_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_on_sqlite_a_process_creates_its_service_key(machine: Machine, tmp_path: Path) -> None:
    machine.up()
    assert (tmp_path / "service_key.pem").stat().st_mode & 0o777 == 0o600
    machine.stop()


def test_a_signal_that_another_thread_receives_stops_the_process() -> None:
    program = (
        "import os, signal, sys, threading, time\n"
        "from kneo.cli.serve.worker import until_stopped\n"
        "def receives(): signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "def work(stopping):\n"
        "    threading.Timer(0.2, receives).start()\n"
        "    stopping.wait()\n"
        "    print('stopped')\n"
        "until_stopped(work)\n"
    )
    done = run_python([sys.executable, "-c", program], timeout=60)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
