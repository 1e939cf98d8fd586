"""A signed bundle with a long skill: released by Git, executed by a worker that has no other file, read by its agent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from config_repo import GIT_ENV
from kneo_process import Machine, Process, eventually
from model_server import Call, Reply, model_server
from model_turns import variables

from kneo.trust.keys import PrivateKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SKILL = """---
name: refunds
description: How to refund an order.
---
Refund at most 20 euros. {padding}
"""

SPEC = {
    "version": "v1",
    "agent": {
        "name": "support",
        "model": {"provider": "openai", "name": "gpt-5-mini", "extra": {"api": "chat"}},
        "strategy": "react",
        "skills": ["refunds"],
    },
    "skills": {"refunds": {"source": "skills/refunds"}},
}

SCRIPT = [
    Reply(calls=[Call("read_skill", {"name": "refunds"})]),
    Reply(calls=[Call("read_skill", {"name": "refunds", "resource": "exceptions.md"})]),
    Reply("Gift cards are not refunded."),
]


def test_the_agent_of_a_release_reads_the_skill_that_was_signed(database_url: str, tmp_path: Path) -> None:
    with model_server(SCRIPT) as server:
        machine = Machine(tmp_path / "work", database_url, **variables(server))
        if database_url.startswith("postgres"):
            machine.env["KNEO_SERV_SERVICE_KEY"] = PrivateKey.generate().dump().decode()
        try:
            run_of_release(machine)
        finally:
            machine.stop()
        listed, read, resource = (str(request.body) for request in server.requests)
    assert "How to refund an order." in listed
    assert "Refund at most 20 euros." not in listed
    assert "Refund at most 20 euros." in read
    assert "not refunded by law" not in read
    assert "not refunded by law" in resource


def run_of_release(machine: Machine) -> None:
    made = machine.json("init", "acme")
    repo = Path(str(made["directory"]))
    folder = repo / "skills" / "refunds"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(SKILL.format(padding="Be kind. " * 600))
    (folder / "exceptions.md").write_text("Gift cards are not refunded by law.\n")
    (repo / "support.yaml").write_text(yaml.safe_dump(SPEC))
    bundle = "bundles/support/1.0.0.dsse.json"
    signed = ("--key", str(made["key"]), "--approved-by", "owner", "--env", "dev")
    machine.kneo("spec", "bundle", "sign", "support.yaml", "--version", "1.0.0", "--output", bundle, *signed, cwd=repo)
    shutil.rmtree(repo / "skills")
    (repo / "support.yaml").unlink()
    environment = repo / "environments" / "dev.yaml"
    content = yaml.safe_load(environment.read_text())
    content["spec"]["releases"].append({"bundle": "support", "version": "1.0.0"})
    environment.write_text(yaml.safe_dump(content))
    for command in (["add", "-A"], ["commit", "-q", "-m", "Release support to dev"]):
        subprocess.run(["git", *command], cwd=repo, env=GIT_ENV, check=True, capture_output=True)
    trust = ("--trust-root", str(made["trust_root"]))
    machine.kneo("controller", "run", "--once", "--repo", str(repo), *trust, expect=None)

    worker = machine.start("worker", answers=False)
    service = machine.start("service", "serve", "--port", "0", "--workers", "0")
    begun = service.post("/runs", {"input": "Refund my gift card.", "bundle": "support", "environment": "dev"})
    run = eventually(lambda: _ended(service, str(begun["run_id"])))
    assert worker.popen.poll() is None, worker.log.read_text()
    assert (run["status"], run["output_text"]) == ("succeeded", "Gift cards are not refunded."), run
    assert run["metadata"]["release"]["bundle"] == "support"  # type: ignore[index]
    assert "not refunded by law" in str(service.get(f"/runs/{begun['run_id']}/conversation"))


def _ended(service: Process, run_id: str) -> dict[str, object] | None:
    run = service.get(f"/runs/{run_id}")
    return run if run["status"] not in {"pending", "running"} else None
