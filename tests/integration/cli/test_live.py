"""What somebody at a terminal sees of a run while it runs."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

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
    """Runs a command with a terminal as its output; returns what stood on it."""

    def call(*arguments: str) -> str:
        ours, theirs = pty.openpty()
        env = {"PATH": process_environment("PATH")["PATH"], "HOME": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "160"}
        command = [sys.executable, "-m", "cli.main", *arguments]
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=theirs, stderr=theirs, stdin=theirs) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    shown += os.read(ours, 65_536)
                except OSError:  # the other end has gone
                    break
            process.wait(30)
        os.close(ours)
        return shown.decode()

    return call


def test_a_run_shows_its_steps_while_they_happen_and_then_what_it_asks(terminal, tmp_path: Path):
    (tmp_path / "live.yaml").write_text(SPEC)
    shown = terminal("run", "live.yaml", "--input", "hello")
    assert shown.index("draft") < shown.index("Status: paused") < shown.index("Paused: approval required: Publish it?")
    assert "run_started" in shown or "step_" in shown
