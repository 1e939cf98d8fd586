"""A budget that is used up in the middle of a run: a person grants it once more, or the run ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import Call, ModelServer, Reply, model_server
from rules_now import always

from kneo.cli.main import run
from kneo.runtime.engine.rules_in_force import RulesInForce
from kneo.spec.policy import ModelRules

SPEC = """
version: v1
agent: {name: helper, model: {provider: openai, name: gpt-5-mini}, strategy: react, tools: [look]}
tools:
  look:
    description: Look up.
    implementation: budget_tools.look
    parameters: {type: object, properties: {id: {type: integer}}}
components:
  humans: {default: {description: Budget}}
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A project whose environment rules have a budget of 15 tokens per run, which the first request uses up."""
    (tmp_path / "agent.yaml").write_text(SPEC)
    (tmp_path / "budget_tools.py").write_text("def look(arguments):\n    return {'found': 1}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNEO_SERV_IMPORT_ALLOW", "budget_tools")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    rules = ModelRules.model_validate({"budgets": [{"per": "run", "tokens": 15, "on_exceeded": "ask"}]})
    monkeypatch.setattr(RulesInForce, "models", lambda _self, environment: always(rules)(environment))
    with model_server([Reply("", calls=[Call("look", {"id": 1})], usage=(10, 5)), Reply("Done.")]) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai_url)
        yield running


def kneo(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    run([*arguments, "--json"])
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def paused(capsys: pytest.CaptureFixture[str]) -> tuple[str, str, dict[str, object]]:
    started = kneo(capsys, "run", "agent.yaml", "--input", "hi")
    assert started["status"] == "paused", started
    metadata = started["metadata"]
    assert isinstance(metadata, dict)
    request = metadata["pending_human_request"]
    return str(started["continuation_id"]), str(request["request_id"]), request


def test_a_person_grants_a_budget_once_more(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    task, request_id, request = paused(capsys)
    assert "15 tokens" in str(request["prompt"])
    assert len(server.requests) == 1
    done = kneo(capsys, "task", "decide", task, "--request-id", request_id, "--select", "grant")
    assert (done["status"], done["output_text"]) == ("succeeded", "Done.")
    assert len(server.requests) == 2


def test_a_refused_budget_ends_the_run(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    task, request_id, _ = paused(capsys)
    done = kneo(capsys, "task", "decide", task, "--request-id", request_id, "--select", "stop")
    assert done["status"] == "failed"
    error = done["error"]
    assert isinstance(error, dict)
    assert error["type"] == "budget_exceeded"
    assert len(server.requests) == 1
