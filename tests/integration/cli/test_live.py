"""What somebody at a terminal sees of a run while it runs."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from model_server import Call, ModelRequest, Reply, model_server

from kneo.settings import process_environment

SPEC = """
version: v1
agent: {name: a, model: {provider: dummy, name: dummy}}
workflow:
  type: sequential
  name: live
  steps:
    - {id: draft, kind: agent, ref: writer}
    - {id: approve, kind: human, ref: editor}
components:
  agents: {writer: {name: writer, model: {provider: dummy, name: dummy}}}
  humans: {editor: {description: Publish it?}}
"""


@pytest.fixture
def terminal(tmp_path: Path):
    """Runs a command with a terminal as its output; returns what stood on it, and gives it to ``look`` as it grows."""

    def call(*arguments: str, look: Callable[[bytes], None] = bytes, **variables: str) -> str:
        ours, theirs = pty.openpty()
        env = {"PATH": process_environment("PATH")["PATH"], "HOME": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "160"}
        env |= variables
        command = [sys.executable, "-m", "kneo.cli.main", *arguments]
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=theirs, stderr=theirs, stdin=theirs) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    shown += os.read(ours, 65_536)
                except OSError:  # the other end has gone
                    break
                look(shown)
            process.wait(240)
        os.close(ours)
        return shown.decode()

    return call


def test_a_run_shows_its_steps_while_they_happen_and_then_what_it_asks(terminal, tmp_path: Path):
    (tmp_path / "live.yaml").write_text(SPEC)
    shown = terminal("run", "live.yaml", "--input", "hello")
    assert shown.index("draft") < shown.index("Status: paused") < shown.index("Paused: approval required: Publish it?")
    assert "run_started" in shown or "step_" in shown


AGENT = """
version: v1
agent: {name: helper, model: {provider: openai, name: gpt-5-mini}, strategy: react, tools: [look]}
tools:
  look:
    description: Look up.
    implementation: live_tools.look
    parameters: {type: object, properties: {id: {type: integer}}}
"""


def test_replies_and_tool_calls_are_shown_while_they_happen(terminal, tmp_path: Path):
    (tmp_path / "agent.yaml").write_text(AGENT)
    (tmp_path / "live_tools.py").write_text("def look(arguments):\n    return {'found': arguments['id']}\n")
    replies = [
        Reply("Let me look.", calls=[Call("look", {"id": 7})]),
        Reply("It is forty-two. My token=abcdefgh1234 stays here."),
    ]
    followed = Event()

    def reply(request: ModelRequest) -> Reply:
        assert followed.wait(240)  # what a model replies before a reader listens is not shown while it happens
        return replies[request.turns]

    def look(shown: bytes) -> None:
        if b"workflow_started" in shown:
            followed.set()

    with model_server(reply) as server:
        env = {"OPENAI_BASE_URL": server.openai_url, "OPENAI_API_KEY": "k", "KNEO_SERV_IMPORT_ALLOW": "live_tools"}
        shown = terminal("run", "agent.yaml", "--input", "hello", "--stream", look=look, **env)
        plain = subprocess.run(
            [sys.executable, "-m", "kneo.cli.main", "run", "agent.yaml", "--input", "hello", "--stream", "--json"],
            cwd=tmp_path,
            env={"PATH": process_environment("PATH")["PATH"], "HOME": str(tmp_path), **env},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    assert [request.streamed for request in server.requests] == [True, True, False, False]
    in_order = [
        "Let me look.",
        "model_completed",
        "tool_call_started",
        "look",
        "tool_call_completed",
        "It is forty-two. My token=[REDACTED] stays here.",
        "step_completed",
        "Status: succeeded",
        "2 requests, 1 tool call, 30 tokens, $0.0000",
    ]
    at = 0
    for part in in_order:
        at = shown.find(part, at)
        assert at >= 0, f"{part!r} is missing in\n{shown}"
    assert "abcdefgh1234" not in shown
    view = json.loads(plain.stdout)
    assert view["metadata"]["usage"]["tool_calls"] == 1
    assert plain.stderr.splitlines()[-1].startswith("2 requests, 1 tool call, 30 tokens, $0.0000")
