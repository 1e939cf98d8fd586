"""What simulate, lint and the policy report show of privileged calls with conditions by argument, in a config repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kneo.cli.main import run

SMALL = "args.amount >= 0 && args.amount <= 100"
SPEC = {
    "agent": {
        "name": "root",
        "model": {"provider": "openai", "name": "m"},
        "strategy": "react",
        "tools": {"include": ["refund"], "permissions": {}},
    },
    "workflow": [{"id": "a", "kind": "agent", "ref": "root"}],
    "tools": {
        "refund": {
            "description": "Refunds.",
            "implementation": "shop.refund",
            "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}},
            "capabilities": ["privileged"],
            "review": {"before": {"when": "args.amount > 100"}},
        }
    },
}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("def refund(arguments):\n    return arguments\n")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def rules(tmp_path: Path, **tools: object) -> None:
    spec = {"policy": {"enabled": True}, "signatures": {"roles": ["release"], "threshold": 1}, "tools": tools}
    content = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    (tmp_path / "environments").mkdir(exist_ok=True)
    (tmp_path / "environments" / "prod.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "environments" / "trust.json").write_text("{}")


def calls(capsys: pytest.CaptureFixture[str], *command: str) -> list[dict[str, object]]:
    capsys.readouterr()
    run([*command, "spec.yaml", "--json"])
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["calls"]
    return found


@pytest.mark.parametrize("command", [("spec", "simulate"), ("spec", "policy-report")])
def test_each_privileged_call_is_listed_with_its_coverage(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    [call] = calls(capsys, *command)
    assert (call["tool"], call["agent"], call["coverage"], call["when"]) == ("refund", "root", "asked", None)


def test_the_rules_of_an_environment_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    deny = [{"tools": ["refund"], "when": "args.amount > 5000"}, "shell"]
    rules(tmp_path, deny=deny, unattended=[{"tools": ["refund"], "when": SMALL}])
    [call] = calls(capsys, "spec", "simulate", "--env", "prod")
    assert (call["coverage"], call["when"], call["denied"]) == ("unattended", SMALL, ["args.amount > 5000"])
    rules(tmp_path, deny=deny)
    assert calls(capsys, "spec", "policy-report", "--env", "prod")[0]["coverage"] == "asked"
    capsys.readouterr()
    run(["spec", "lint", "spec.yaml", "--env", "prod"])
    assert "prod accepts no unattended call of refund, so this gate always asks." in capsys.readouterr().out
