"""Every command of ``docs/guides/releases/story.md`` works in the order of the page: a suite stops one version, a canary the next one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_repo import ConfigRepo
from integration.cli.conftest import Kneo
from model_server import Call, ModelRequest, Reply, model_server

from kneo.digest import digest_of

pytest.importorskip("pydantic_ai")

PAGE = (Path(__file__).parents[3] / "docs/guides/releases/story.md").read_text()
SECTIONS = {
    title: [
        line
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
YAML = re.findall(r"^```text\n(# \w.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""The files of the page: the suite, the evidence rule, and the plan of the canary."""

PROMPTS = {
    "1.0.0": "Pay what the invoice says.",
    "1.1.0": "Amounts are in cents. Pay what the invoice says.",
    "1.2.0": "Amounts in dollars are in cents. Pay what the invoice says.",
}
TOOLS = "def pay(arguments):\n    return f\"paid {arguments['amount']}\"\n"


def spec(version: str) -> dict[str, Any]:
    pay = {
        "description": "Pay an invoice.",
        "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]},
        "implementation": "pay_tools.pay",
        "capabilities": ["privileged"],
        "review": {"before": {"human": "finance", "decisions": ["approved", "rejected"]}},
    }
    return {
        "version": "v1",
        "agent": {
            "name": "clerk",
            "system_prompt": PROMPTS[version],
            "model": {"provider": "openai", "name": "gpt-5-mini"},
            "strategy": {"type": "react", "max_iterations": 5},
            "tools": {"include": ["pay"]},
        },
        "tools": {"pay": pay},
        "components": {"humans": {"finance": {"description": "Is this amount right?"}}},
    }


def answer(request: ModelRequest) -> Reply:
    """Answer as a model that believes its prompt: a prompt about cents makes it pay ten times as much."""
    if request.turns:
        return Reply("Done.")
    is_wrong = "Amounts are in cents" in request.text or (
        "dollars are in cents" in request.text and "USD" in request.text
    )
    return Reply(calls=[Call("pay", {"amount": 1200 if is_wrong else 120})])


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfigRepo]:
    repo = ConfigRepo(tmp_path / "acme", environments=("prod",))
    (tmp_path / "eva.pem").write_bytes(repo.person("eva", "evaluator").dump())
    repo.write("pay_tools.py", TOOLS.encode())
    monkeypatch.syspath_prepend(str(repo.folder))
    for version in PROMPTS:
        repo.bundle("pay", version, spec(version), environments=("prod",))
    repo.write("evals/pay.yaml", YAML[0].encode())
    repo.environment("prod", {"pay": "1.0.0"})
    repo.commit("Release pay 1.0.0")
    monkeypatch.chdir(repo.folder)
    monkeypatch.setenv("KNEO_SERV_TRUST_ROOT", repo.pin)
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", f"sqlite:///{tmp_path / 'kneo.sqlite'}")
    with model_server(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
        yield repo


class Terminal:
    """Runs the commands of the page, and keeps what a person would see."""

    def __init__(self, kneo: Kneo, repo: ConfigRepo) -> None:
        self.kneo, self.repo, self.lines = kneo, repo, list[str]()

    def run(self, command: str, status: int = 0) -> str:
        program, *words = shlex.split(command)
        self.lines.append(f"$ {command}")
        if program == "git":
            self.repo.git(*words)
            return ""
        done = self.kneo(*words)
        shown = done.out + done.err
        self.lines.append(shown.rstrip())
        assert done.status == status, shown
        return shown


def test_a_suite_stops_one_version_and_a_canary_the_next(kneo: Kneo, repo: ConfigRepo, tmp_path: Path) -> None:
    terminal = Terminal(kneo, repo)
    terminal.run("kneo controller run --repo . --once")
    rule = yaml.safe_load(YAML[1])["evidence"][0]
    rule["suite"]["digest"] = digest_of((repo.folder / "evals/pay.yaml").read_bytes())
    repo.environment("prod", {"pay": "1.1.0"}, evidence=[rule])

    evaluate, add, commit, reconcile, why = SECTIONS["A suite stops 1.1.0"]
    failed = terminal.run(evaluate, status=1)
    assert 'pay was called with {"amount":1200}, and no stub fits.' in failed
    terminal.run(add)
    terminal.run(commit)
    terminal.run(reconcile, status=1)
    assert "pass_rate is 0 of 1 case; 1 is required." in terminal.run(why)

    plan = yaml.safe_load(YAML[2])["releases"][0]["canary"]
    repo.environment("prod", {"pay": "1.2.0"}, evidence=[rule], canaries={"pay": plan})
    evaluate, add, commit, reconcile, status, *rest = SECTIONS["A canary rolls 1.2.0 back"]
    assert "pass_rate: 1 (1 cases)" in terminal.run(evaluate)
    terminal.run(add)
    terminal.run(commit)
    terminal.run(reconcile, status=1)
    assert "running" in terminal.run(status)
    run, reject, approve, again, last = rest
    asked = {"1.0.0": 0, "1.2.0": 0}
    while kneo("canary", "status", "prod/pay", "--json").json["state"] == "running":
        assert sum(asked.values()) < 120, asked
        started = kneo(*shlex.split(run)[1:], "--json")
        waiting = json.loads(started.out)
        task, version = waiting["continuation_id"], waiting["metadata"]["release"]["version"]
        shown = kneo("task", "get", task, "--json")
        is_wrong = "1200" in shown.out
        assert is_wrong is (version == "1.2.0")
        decide = (reject if is_wrong else approve).replace("cont_…", task)
        assert kneo(*shlex.split(decide)[1:]).status == 0
        asked[version] += 1
        kneo("controller", "run", "--repo", ".", "--once")
    terminal.lines.append(f"... {asked['1.2.0']} of {sum(asked.values())} runs were of 1.2.0, and people rejected them")
    terminal.run(again, status=1)
    shown = terminal.run(last)
    assert "rolled_back" in shown
    assert "rejected_by_people" in shown
    (tmp_path / "transcript.txt").write_text("\n".join(terminal.lines))
    started = [json.loads(kneo(*shlex.split(run)[1:], "--json").out) for _ in range(5)]
    assert {each["metadata"]["release"]["version"] for each in started} == {"1.0.0"}
