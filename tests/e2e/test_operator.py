"""An operator's first installation by ``docs/operations/README.md``: PostgreSQL, four processes, and a worker that is killed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docs_pages import DOCS, blocks, lines
from kneo_process import PATIENCE_SECONDS, Machine, Process, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAGE = DOCS / "operations/README.md"
RUNS = 6


@pytest.fixture
def machine(postgres_url: str, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", postgres_url)
    del made.env["KNEO_SERV_DATABASE_URL"], made.env["KNEO_SERV_SERVICE_KEY"]
    yield made
    made.stop()


def start(machine: Machine, command: str, repository: Path) -> Process:
    words = command.split()[1:]
    if words[0] == "controller":
        words[-1] = str(repository)
    serves = words[0] == "service"
    return machine.start(*words, *(["--port", "0"] if serves else []), answers=serves)


def key_of(machine: Machine, name: str, role: str) -> str:
    """Create a key, add its entry to the file of keys, and return the key."""
    created = machine.json("keys", "api-key", name, "--role", role)
    with (machine.folder / "api-keys").open("a") as file:
        file.write(f"{created['entry']};")
    return str(created["key"])


def test_four_processes_on_postgresql_and_a_killed_worker(machine: Machine, postgres_url: str) -> None:
    prepare, begin = [block for block in blocks(PAGE) if block.kind == "sh"]
    repository = machine.folder / "acme"
    root = str(machine.json("init", str(repository))["trust_root"])
    values = {
        "postgresql://USER:PASSWORD@HOST/DATABASE": postgres_url,
        "sha256:DIGEST": root,
        "$PWD": str(machine.folder),
    }
    for command in lines(prepare):
        exported = re.fullmatch(r"export (\w+)=(\S+)", command)
        if exported:
            text = exported[2]
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            machine.env[exported[1]] = text
        elif "api-key" in command:
            operator, approver = key_of(machine, "ann", "operator"), key_of(machine, "ben", "approver")
        else:
            machine.kneo(*command.split()[1:])
    service, controller, killed, other = [start(machine, command, repository) for command in lines(begin)]
    eventually(lambda: machine.kneo("status", expect=None).stdout.count("Ready") == 3)
    eventually(lambda: killed.printed and other.printed and controller.printed)
    assert killed.printed == ["✓ The worker executes up to 4 runs at once.\n"]
    assert controller.printed[0] == "✓ The controller reconciles main.\n"

    def ask(method: str, path: str, key: str, body: dict[str, object] | None = None) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.request(method, f"{service.url}/v1{path}", json=body, headers=headers, timeout=PATIENCE_SECONDS)
        assert answer.is_success, answer.text
        read: dict[str, object] = answer.json()
        return read

    body = {"bundle": "announcement", "environment": "prod", "input": "We ship", "async_mode": True}
    started = [ask("POST", "/runs", operator, body)["run_id"] for _ in range(RUNS)]
    killed.kill()
    tasks = eventually(
        lambda: (
            found
            if len(found := ask("GET", "/human-tasks?status=pending&limit=100", approver)["tasks"]) == RUNS
            else None
        )
    )
    for task in tasks:
        ask("POST", f"/human-tasks/{task['id']}/resume", approver, {"decision": "approved"})
    eventually(lambda: all(ask("GET", f"/runs/{run}", operator)["status"] == "succeeded" for run in started))
    assert other.popen.poll() is None
    assert (
        "no problems" in machine.kneo("audit", "verify").stdout or "verified" in machine.kneo("audit", "verify").stdout
    )
