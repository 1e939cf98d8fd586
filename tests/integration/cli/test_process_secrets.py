"""Functions of specs and what they start do not see the settings of the process that runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine

FUNCTIONS = '''\
import json
import os
import subprocess


def look(text):
    """Return what this process and one that it starts find in their environment."""
    started = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    seen = [f"{name}={value}" for name, value in os.environ.items()] + started.splitlines()
    names = sorted({line.partition("=")[0] for line in seen})
    leaks = [line.partition("=")[0] for line in seen if "secret-of" in line]
    return json.dumps({"names": names, "leaks": leaks, "own": os.environ["SHOP_NAME"]})
'''

SECRETS = {
    "KNEO_SERV_API_KEYS": "ann:secret-of-ann:operator",
    "KNEO_SERV_ADMIN_API_KEY": "secret-of-admin",
    "KNEO_SERV_API_KEY": "secret-of-admin",
    "KNEO_SERV_HOOK_SECRET_GITHUB": "secret-of-github-hooks",
    "KNEO_SERV_NOTIFY_SLACK": "https://hooks.example/secret-of-slack",
    "KNEO_SERV_CHANNEL_OPS": "https://hooks.example/secret-of-ops",
    "KNEO_SERV_SPEC_SIGNING_KEY": "secret-of-hmac",
    "KNEO_SERV_KEY_PASSPHRASE": "secret-of-keys",
    "SHOP_TOKEN": "secret-of-shop",
}


def spec(timeout: int | None) -> dict[str, object]:
    step = {"id": "look", "kind": "function", "ref": "look", **({"timeout_seconds": timeout} if timeout else {})}
    return {
        "version": "v1",
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {"type": "sequential", "steps": [step]},
        "components": {
            "functions": {
                "look": {"implementation": "look_functions.look", "sandbox": {"env": {"SHOP_NAME": "corner shop"}}}
            }
        },
    }


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", **SECRETS)
    (tmp_path / "look_functions.py").write_text(FUNCTIONS)
    yield made
    for process in made.processes:
        process.kill()


def check(output: object) -> None:
    assert isinstance(output, str)
    seen = json.loads(output)
    assert seen["leaks"] == []
    assert seen["own"] == "corner shop"
    assert {"PATH", "HOME", "SHOP_NAME"} <= set(seen["names"])
    assert [name for name in seen["names"] if name.startswith("KNEO_SERV_")] == []


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_function_of_a_service_sees_its_own_variables_only(machine: Machine, timeout: int | None) -> None:
    service = machine.start("service", "serve", "--port", "0")
    service.http.headers["Authorization"] = "Bearer secret-of-ann"
    for _ in range(2):  # a template is kept for the next call
        run = service.post("/runs", {"input": "x", "spec": spec(timeout)})
        assert run["status"] == "succeeded", run
        check(run["output_text"])
    assert service.http.get("/runs", headers={"Authorization": "Bearer secret-of-admin"}).status_code == 200


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_function_of_a_command_sees_its_own_variables_only(machine: Machine, timeout: int | None) -> None:
    (machine.folder / "spec.json").write_text(json.dumps(spec(timeout)))
    check(machine.json("run", "spec.json", "--input", "x")["output_text"])
