"""The hooks of the guide *Keep your agent* in the real Claude Code, whose model is a server on loopback: ``make extras``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conformance.extras.test_extras import call
from conformance.extras.test_mcp_clients import GUIDE
from integration.service.test_calls import decide
from integration.service.test_claude_code import spec, waiting
from model_server import Call, ModelRequest, ModelServer, Reply, model_server
from served_agents import served_agents
from service_bench import Bench, Json

from kneo.settings import process_environment

PACKAGE = "@anthropic-ai/claude-code@>=2.1.295"
"""The first version with ``onFailure``."""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def claude(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the installed program."""
    if not request.config.getoption("--fresh-environments"):
        pytest.skip("Claude Code is installed from a package index: make extras")
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("claude")
    environment = {**process_environment("PATH"), "HOME": str(folder)}
    done = call(["npm", "install", "--no-audit", "--no-fund", PACKAGE], cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (program,) = folder.glob("node_modules/@anthropic-ai/claude-code-*/claude")
    return program


@pytest.fixture(scope="module")
def house(claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    assert claude.is_file()
    with served_agents(tmp_path_factory.mktemp("hooks"), {"coding": spec()}, calls=[{"bundle": "coding"}]) as made:
        yield made


def reply(request: ModelRequest) -> Reply:
    """Return the call of a tool that writes a file, and after its result an end."""
    if not any(tool["name"] == "Bash" for tool in request.body.get("tools", [])) or "tool_result" in request.text:
        return Reply("Done.")
    command = {"command": "echo stated > made.txt", "description": "Write"}
    return Reply(calls=[Call("Bash", command, id=f"toolu_{uuid.uuid4().hex}")])


class ClaudeCode:
    """Claude Code with the settings of the guide, in a folder of its own."""

    def __init__(self, program: Path, folder: Path, model: ModelServer) -> None:
        self.program, self.folder, self.model = program, folder, model

    def run(self, url: str, key: str) -> str:
        """Ask for the file with hooks at a service; return what the model was given as the result of the tool."""
        found = re.search(r"```json\n(\{\n  \"allowManagedHooksOnly.*?)```", GUIDE.read_text(), re.DOTALL)
        assert found is not None
        settings: Json = json.loads(found[1].replace("https://kneo.example.com", url).replace("KEY", key))
        hooks = {"hooks": settings["hooks"]}
        environment = {
            **process_environment("PATH"),
            "HOME": str(self.folder),
            "IS_SANDBOX": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_BASE_URL": self.model.base_url("anthropic"),
        }
        options = ["--allowedTools", "Bash", "--model", "claude-sonnet-4-5", "--settings", json.dumps(hooks)]
        self.model.requests.clear()
        done = subprocess.run(
            [self.program, "-p", "Write the file.", *options],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.dumps(self.model.requests[-1].body["messages"])

    def made(self) -> str | None:
        """Return what the tool wrote."""
        file = self.folder / "made.txt"
        return file.read_text().strip() if file.exists() else None


@pytest.fixture
def code(claude: Path, tmp_path: Path) -> Iterator[ClaudeCode]:
    with model_server(reply) as model:
        yield ClaudeCode(claude, tmp_path, model)


@pytest.mark.parametrize(
    ("decision", "made", "outcome"),
    [
        ({"decision": "edited", "arguments": {"command": "echo decided > made.txt"}}, "decided", "success"),
        ({"decision": "rejected", "comment": "not on this machine"}, None, "denied"),
    ],
)
def test_a_call_runs_as_people_decided_it_and_is_reported(
    house: Bench, code: ClaudeCode, decision: Json, made: str | None, outcome: str
) -> None:
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(code.run, house.url, "caller-key")
        asked = waiting(house)
        assert code.made() is None
        decide(house, asked, **decision)
        shown = running.result()
    assert code.made() == made
    assert str(decision.get("comment", "")) in shown
    assert house.get(f"/calls/{asked['id']}", role="caller")["outcome"] == outcome


@pytest.mark.parametrize(
    ("path", "key", "reason"),
    [
        ("", "a-stranger", "HTTP 401"),
        ("/nowhere", "caller-key", "HTTP 404"),
        (None, "caller-key", "ECONNREFUSED"),
    ],
)
def test_nothing_runs_where_the_service_does_not_decide(
    house: Bench, code: ClaudeCode, path: str | None, key: str, reason: str
) -> None:
    shown = code.run("http://127.0.0.1:9" if path is None else house.url + path, key)
    assert (code.made(), reason in shown) == (None, True), shown
