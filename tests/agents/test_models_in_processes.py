"""Agents with models in real processes: keys from files, nothing secret in databases, logs and answers, waits without threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kneo_process import Machine, eventually
from model_server import ModelServer, Reply, model_server, overloaded
from model_turns import KEY

SPEC = """\
version: v1
agent:
  name: clerk
  system_prompt: Answer in one sentence.
  model: {provider: openai, name: fake-model, max_tokens: 50, temperature: 0.5}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", f"sqlite:///{tmp_path / 'kneo.sqlite'}", KNEO_SERV_LOG_LEVEL="DEBUG")
    (made.folder / "clerk.yaml").write_text(SPEC)
    try:
        yield made
    finally:
        made.stop()


def connect(machine: Machine, server: ModelServer) -> None:
    secrets = machine.folder / "secrets"
    secrets.mkdir()
    (secrets / "OPENAI_API_KEY").write_text(f"{KEY}\n")
    machine.env |= {"OPENAI_BASE_URL": server.openai_url, "KNEO_SERV_SECRETS_DIR": str(secrets)}


def written(machine: Machine) -> bytes:
    """Return every byte that the machine has written, but for the secrets themselves."""
    files = [path for path in machine.folder.parent.rglob("*") if path.is_file() and path.parent.name != "secrets"]
    return b"".join(path.read_bytes() for path in files)


@pytest.mark.e2e
def test_a_run_is_answered_by_the_model_with_a_key_from_a_file(machine: Machine) -> None:
    with model_server([Reply("Paris.", usage=(30, 4))]) as server:
        connect(machine, server)
        run = machine.json("run", "clerk.yaml", "--input", "What is the capital of France?")
        (request,) = server.requests
    assert (run["status"], run["output_text"]) == ("succeeded", "Paris.")
    assert (request.format, request.key, request.model) == ("responses", KEY, "fake-model")
    assert (request.body["max_output_tokens"], request.body["temperature"]) == (50, 0.5)
    assert "Answer in one sentence." in request.text
    listed = machine.json("credentials", "--provider", "openai")
    assert listed["inventory"]["providers"]["openai"]["present"] is True  # type: ignore[index, call-overload]
    assert KEY.encode() not in written(machine)
    trace = json.dumps(machine.json("runs", "trace", str(run["run_id"])))
    assert "model_completed" in trace


@pytest.mark.e2e
def test_a_refused_key_is_in_no_answer_log_trace_or_database(machine: Machine) -> None:
    with model_server([Reply(status=401)]) as server:
        connect(machine, server)
        done = machine.kneo("run", "clerk.yaml", "--input", "x", "--json", expect=None)
        assert server.requests[0].key == KEY
    shown = done.stdout + done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "model_refused"
    assert KEY not in shown
    assert KEY.encode() not in written(machine)


@pytest.mark.e2e
def test_a_run_whose_key_is_missing_is_refused_before_it_starts(machine: Machine) -> None:
    refused = machine.json("run", "clerk.yaml", "--input", "x", expect=1)
    assert refused["error"] == "provider_not_configured"
    assert "OPENAI_API_KEY" in str(refused["message"])
    assert machine.json("runs", "list")["count"] == 0


@pytest.mark.e2e
def test_a_long_wait_of_the_provider_is_the_engines_and_is_in_the_trace(machine: Machine) -> None:
    with model_server([[overloaded(3), Reply("Done.")]]) as server:
        connect(machine, server)
        process = machine.up()
        run_id = process.post("/runs", {"spec": yaml.safe_load(SPEC), "input": "x", "target": "agent"})["run_id"]
        ended = eventually(lambda: (run := process.get(f"/runs/{run_id}"))["status"] == "succeeded" and run)
        events = process.get(f"/runs/{run_id}/trace")["events"]
    assert ended["output_text"] == "Done."
    assert len(server.requests) == 2
    assert [event["type"] for event in events if event["type"].startswith("model_")] == [  # type: ignore[attr-defined, index]
        "model_retried",
        "model_postponed",
        "model_completed",
    ]
