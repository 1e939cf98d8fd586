"""The tutorial of a custom tool, as written: its files, its commands, and what it says about trace, audit and policy.

Changed are the prefix of the imports, and the port of the server. The provider is a scripted model on loopback.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kneo_process import eventually
from model_server import Call, ModelServer, Reply, model_server
from processes import free_port
from warm import commands

from kneo.settings import process_environment

MY_TOOLS = '''
# examples/my_tools.py
from typing import Any

USERS = {
    "u-001": "alice@example.com",
    "u-002": "bob@example.com",
    "u-003": "carol@example.com",
}

def lookup_user(args: dict[str, Any]) -> str:
    """Return the email for a user id, or 'unknown' if not present."""
    user_id = args.get("user_id")
    if not user_id:
        return "unknown: user_id is required"
    return USERS.get(user_id, f"unknown: {user_id}")
'''

MY_FACTORY = """
# examples/my_factory.py
from kneo.platform import PlatformManager
from kneo.spec import SpecCompiler
from kneo.service.factory import (
    create_runtime_registry,
    create_tool_registry,
    create_persistence_stores,
)
from kneo.tools import ToolDefinition

from examples.my_tools import lookup_user

def build_platform() -> PlatformManager:
    runtime_registry = create_runtime_registry()
    tool_registry = create_tool_registry(include_examples=True)
    tool_registry.register(
        ToolDefinition(
            name="lookup_user",
            description="Return the email for a user id.",
            parameters={
                "type": "object",
                "properties": {"user_id": {"type": "string"}},
                "required": ["user_id"],
            },
        ),
        lookup_user,
    )

    compiler = SpecCompiler(
        runtime_registry=runtime_registry,
        tool_registry=tool_registry,
    )
    run_state, continuation = create_persistence_stores()
    manager = PlatformManager(
        compiler=compiler,
        run_state_store=run_state,
        continuation_store=continuation,
    )
    manager.start_worker()
    return manager
"""

LOOKUP_AGENT = """
version: v1

agent:
  name: directory-agent
  system_prompt: |
    You answer questions by looking up users with the lookup_user tool.
    Return concise, factual answers.
  model:
    provider: openai
    name: gpt-4o-mini
  strategy:
    type: react
    max_iterations: 4
  runtime_preferences:
    preferred_mode: bridge
    allowed_modes: [bridge]
  tools:
    include: [lookup_user]

workflow:
  type: sequential
  name: lookup-pipeline
  steps:
    - id: answer
      kind: agent
      ref: directory-agent
"""

POLICY = """
  policies:
    tool:
      allow:
        - lookup_user
      deny: []
      network: false
      filesystem: false
      shell: false
"""

RUN_LOOKUP = """
# examples/run_lookup.py
from examples.my_factory import build_platform

def main() -> None:
    manager = build_platform()
    result = manager.run_from_spec(
        input_text="What's the email for u-002?",
        spec_path="examples/lookup_agent.yaml",
        target="workflow",
    )
    print(f"run_id={result.run_id}")
    print(result.output_text)

if __name__ == "__main__":
    main()
"""

SERVE_LOOKUP = """
# examples/serve_lookup.py
import uvicorn
from kneo.service.app import create_app
from kneo.service.dependencies import set_platform_manager

from examples.my_factory import build_platform

if __name__ == "__main__":
    set_platform_manager(build_platform())
    uvicorn.run(create_app(), host="127.0.0.1", port=8000)
"""

ANSWER = "The email for u-002 is bob@example.com."


class Tutorial:
    """A folder with the files of the tutorial, and its lines typed into a shell there."""

    def __init__(self, folder: Path, server: ModelServer) -> None:
        self.folder, self.server = folder, server
        self.port = free_port()
        (folder / "examples").mkdir()
        self.env = {
            "PATH": f"{commands()}:{Path(sys.executable).parent}:{process_environment('PATH')['PATH']}",
            "HOME": str(folder),
            "NO_COLOR": "1",
            "OPENAI_API_KEY": "sk-tutorial",
            "OPENAI_BASE_URL": server.openai_url,
        }
        self.write("__init__.py", "")  # this repository has a package of that name too
        self.write("my_tools.py", MY_TOOLS)
        self.write("my_factory.py", MY_FACTORY)
        self.write("lookup_agent.yaml", LOOKUP_AGENT)
        self.write("run_lookup.py", RUN_LOOKUP)
        self.write("serve_lookup.py", SERVE_LOOKUP.replace("8000", str(self.port)))

    def write(self, name: str, text: str) -> None:
        (self.folder / "examples" / name).write_text(text)

    def type(self, line: str, expect: int = 0, **variables: str) -> str:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=self.folder,
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def trace(self, run_id: str) -> list[dict[str, object]]:
        found = json.loads(self.type(f"kneo runs trace {run_id} --json"))
        return found["events"] if isinstance(found, dict) else found


@pytest.fixture
def tutorial(tmp_path: Path) -> Iterator[Tutorial]:
    script = [Reply(calls=[Call("lookup_user", {"user_id": "u-002"})]), Reply(ANSWER)]
    with model_server(script) as server:
        yield Tutorial(tmp_path, server)


PLATFORM = {"KNEO_SERV_PLATFORM": "examples.my_factory:build_platform"}


def test_the_agent_answers_with_the_tool(tutorial: Tutorial) -> None:
    shown = tutorial.type("python -m examples.run_lookup")
    assert ANSWER in shown
    first, second = tutorial.server.requests
    assert [tool["name"] for tool in first.body["tools"]] == ["lookup_user"]
    assert "You answer questions by looking up users" in first.text
    assert "What's the email for u-002?" in first.text
    assert "bob@example.com" in second.text
    assert first.key == "sk-tutorial"


def test_the_call_is_in_the_trace_without_its_content_and_the_audit_log_has_the_run(tutorial: Tutorial) -> None:
    run_id = tutorial.type("python -m examples.run_lookup | sed -n 's/^run_id=//p'").strip().splitlines()[-1]
    shown = tutorial.type(f'RUN_ID={run_id}; kneo runs trace "$RUN_ID"')
    assert "tool_call_started" in shown
    assert "tool_call_completed" in shown
    calls = [event for event in tutorial.trace(run_id) if str(event["type"]).startswith("tool_call")]
    assert [event["type"] for event in calls] == ["tool_call_started", "tool_call_completed"]
    assert all("lookup_user" in json.dumps(event) for event in calls)
    assert "u-002" not in json.dumps(calls)
    assert "bob@" not in json.dumps(calls)
    audit = tutorial.type("kneo audit list --json")
    assert "run.created" in audit
    assert "lookup_user" not in audit
    assert "bob@" not in audit


def test_the_spec_is_valid_where_the_tool_is_registered(tutorial: Tutorial) -> None:
    tutorial.type("kneo spec validate examples/lookup_agent.yaml", **PLATFORM)
    assert "E_UNKNOWN_TOOL" in tutorial.type("kneo spec validate examples/lookup_agent.yaml --json", expect=1)


def test_the_policy_lets_the_listed_tool_through(tutorial: Tutorial) -> None:
    tutorial.write("lookup_agent.yaml", LOOKUP_AGENT.replace("\nworkflow:", f"{POLICY}\nworkflow:"))
    tutorial.type("kneo spec validate examples/lookup_agent.yaml", **PLATFORM)
    assert ANSWER in tutorial.type("python -m examples.run_lookup")


@pytest.mark.parametrize(
    ("old", "new"), [("- lookup_user", "- other"), ("deny: []", "deny: [lookup_user]")], ids=["allow", "deny"]
)
def test_a_blocked_call_is_in_the_trace_and_never_reaches_the_handler(tutorial: Tutorial, old: str, new: str) -> None:
    policy = POLICY.replace(old, new)
    tutorial.write("lookup_agent.yaml", LOOKUP_AGENT.replace("\nworkflow:", f"{policy}\nworkflow:"))
    reached = "def lookup_user(args: dict[str, Any]) -> str:\n    open('reached', 'w').close()\n"
    tutorial.write("my_tools.py", MY_TOOLS.replace("def lookup_user(args: dict[str, Any]) -> str:\n", reached))
    run_id = tutorial.type("python -m examples.run_lookup | sed -n 's/^run_id=//p'").strip().splitlines()[-1]
    assert "tool_policy_denied" in [event["type"] for event in tutorial.trace(run_id)]
    assert not (tutorial.folder / "reached").exists()


def test_the_served_platform_has_the_tool(tutorial: Tutorial) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.serve_lookup"],
        cwd=tutorial.folder,
        env=tutorial.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{tutorial.port}"
        eventually(lambda: answers(url))
        tutorial.type(f"curl -sf {url}/livez")
        body = {"input": "What's the email for u-002?", "spec_path": "examples/lookup_agent.yaml", "async_mode": False}
        answer = httpx.post(f"{url}/v1/runs", json=body, timeout=240).json()
        assert answer["status"] == "succeeded", answer
        assert answer["output_text"] == ANSWER
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=240).status_code == 200
    except httpx.TransportError:
        return False


def test_every_command_has_the_tool_where_the_platform_is_named(tutorial: Tutorial) -> None:
    shown = tutorial.type('kneo run examples/lookup_agent.yaml --input "What\'s the email for u-002?"', **PLATFORM)
    assert ANSWER in shown


def test_a_tool_without_a_handler_says_so(tutorial: Tutorial) -> None:
    code = "from kneo.tools import ToolRegistry; ToolRegistry().get('X')"
    assert "Tool 'X' has no implementation" in tutorial.type(f'python -c "{code}"', expect=1)
