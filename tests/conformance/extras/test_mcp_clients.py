"""The programs of the guide *Keep your agent*, with the real clients: ``make extras``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conformance.extras.test_extras import PIP, call
from integration.service.test_calls import ADDED, decide
from integration.service.test_calls import spec as calls_spec
from kneo_process import eventually
from served_agents import served_agents
from service_bench import Bench, Json

from kneo.settings import process_environment

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "guides" / "api" / "calls.md"
TYPESCRIPT = ROOT / "clients" / "typescript"

ID = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}

PACKAGES = {
    "LangGraph": ("langchain-mcp-adapters>=0.3,<1", "langgraph>=1.2,<2"),
    "OpenAI Agents SDK": ("openai-agents>=0.24,<1",),
    "CrewAI": ("crewai>=1.15,<2", "crewai-tools[mcp]>=1.15,<2"),
}


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if not request.config.getoption("--fresh-environments"):
        pytest.skip("environments are made from a package index: make extras")
    spec = calls_spec()
    tools = spec["tools"]
    spec = {**spec, "tools": {**tools, "lookup": {**tools["lookup"], "parameters": ID}}}
    with served_agents(
        tmp_path_factory.mktemp("clients"),
        {"payments": spec},
        variables={"KNEO_SERV_CALL_WAIT_SECONDS": "60"},
        calls=[{"bundle": "payments"}],
    ) as made:
        functions = made.folder / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        yield made


def program_of(client: str) -> str:
    """Return the program below the heading of a client in the guide."""
    section = GUIDE.read_text().partition(f"### {client}\n")[2].partition("\n### ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None, client
    return found[1]


def variables(house: Bench, folder: Path) -> dict[str, str]:
    own = {"KNEO_URL": house.url, "KNEO_API_KEY": "caller-key", "HOME": str(folder), "OTEL_SDK_DISABLED": "true"}
    return {**process_environment("PATH"), **own}


def approve(house: Bench, tool: str) -> Json:
    """Approve the call of a tool that waits."""

    def find() -> Json | None:
        calls = house.get("/calls", role="caller", status="waiting")["calls"]
        return next((each for each in calls if each["tool"] == tool and each["questions"]), None)

    waiting = eventually(find)
    decide(house, waiting, decision="approved")
    return waiting


def approved_while(house: Bench, tool: str, command: list[str | Path], folder: Path) -> str:
    """Run a program, and approve the call of a tool that it makes."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(call, command, cwd=folder, env=variables(house, folder))
        approve(house, tool)
        finished: subprocess.CompletedProcess[str] = done.result()
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("client", PACKAGES)
def test_the_program_of_the_guide_lists_and_calls_tools_and_gets_what_people_approve(
    house: Bench, client: str, tmp_path: Path
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    assert call([sys.executable, "-m", "venv", tmp_path / "venv"]).returncode == 0
    installed = call([python, *PIP, "install", *PACKAGES[client]])
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "program.py").write_text(program_of(client))
    printed = approved_while(house, "refund", [python, "program.py"], tmp_path)
    assert printed.splitlines()[0] == "['delete_branch', 'get_call', 'lookup', 'refund']"
    for result in ("order", "refunded"):
        assert result in printed, printed


@pytest.mark.timeout(1800)
def test_typescript_lists_and_calls_tools_and_makes_an_approved_call_itself(house: Bench, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    for name in ("package.json", "calls.ts", "tools.ts"):
        shutil.copy(TYPESCRIPT / name, tmp_path)
    document = house.client("admin").get(f"{house.url}/openapi.json")
    (tmp_path / "openapi.json").write_text(json.dumps(document.raise_for_status().json()))
    for command in (["install", "--no-audit", "--no-fund"], ["run", "types"], ["run", "build"]):
        done = call(["npm", *command], cwd=tmp_path, env=variables(house, tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
    printed = approved_while(house, "refund", ["node", "build/tools.js"], tmp_path)
    assert "[ 'lookup', 'refund', 'delete_branch', 'get_call' ]" in printed
    assert "refunded" in printed
    assert "deleted old" in approved_while(house, "delete_branch", ["node", "build/calls.js"], tmp_path)
