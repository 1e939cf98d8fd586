"""Protocols across processes: the guide's program runs, and a killed service loses no task."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_text_part
from a2a.types import GetTaskRequest, Message, Role, SendMessageRequest, Task, TaskState
from config_repo import ConfigRepo
from kneo_process import Machine, Process, eventually
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import ElicitRequestParams, ElicitResult

from kneo.trust.keys import PrivateKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "api" / "protocols.md").read_text()
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {kind: [each["text"] for each in BLOCK.finditer(PAGE) if each["kind"] == kind] for kind in ("python", "yaml")}


@pytest.fixture
def machine(database_url: str, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "house", database_url)
    if database_url.startswith("postgres"):
        machine.env["KNEO_SERV_SERVICE_KEY"] = PrivateKey.generate().dump().decode()
    yield machine
    machine.stop()


@pytest.fixture
def repo(tmp_path: Path) -> ConfigRepo:
    repo = ConfigRepo(tmp_path / "repo")
    repo.bundle("announcement", "1.0.0")
    repo.environment("prod", {"announcement": "1.0.0"}, protocols={"a2a": ["announcement", "research-*"], "mcp": ["*"]})
    repo.commit("Serve the announcement")
    return repo


def up(machine: Machine, repo: ConfigRepo, key: str = "") -> Process:
    process = machine.start("up", "--port", "0", "--repo", str(repo.folder), "--trust-root", repo.pin, cwd=repo.folder)
    process.http.headers.update({"Authorization": f"Bearer {key}"} if key else {})
    eventually(lambda: process.get("/agents")["count"])
    return process


def agent_url(process: Process) -> str:
    return f"{process.url}/v1/a2a/prod/announcement"


async def sent(url: str, text: str, message_id: str, task_id: str = "") -> Task:
    parts = [new_text_part(text)]
    message = Message(role=Role.ROLE_USER, parts=parts, message_id=message_id, task_id=task_id)
    async with httpx.AsyncClient(timeout=240) as http:
        client = await create_client(url, ClientConfig(httpx_client=http, streaming=False))
        (event,) = [one async for one in client.send_message(SendMessageRequest(message=message))]
        return event.task


async def read(url: str, task_id: str) -> Task:
    async with httpx.AsyncClient(timeout=240) as http:
        client = await create_client(url, ClientConfig(httpx_client=http))
        return await client.get_task(GetTaskRequest(id=task_id))


def test_a_gate_in_the_middle_and_a_service_that_is_killed_in_between(machine: Machine, repo: ConfigRepo) -> None:
    first = up(machine, repo)
    task = asyncio.run(sent(agent_url(first), "news", "m-1"))
    assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
    first.kill()
    url = agent_url(up(machine, repo))
    assert asyncio.run(sent(url, "news", "m-1")).id == task.id
    assert asyncio.run(read(url, task.id)).status.state == TaskState.TASK_STATE_INPUT_REQUIRED
    done = asyncio.run(sent(url, "approved", "m-2", task.id))
    assert done.status.state == TaskState.TASK_STATE_COMPLETED, done
    assert "published" in get_artifact_text(done.artifacts[0])
    assert asyncio.run(sent(url, "approved", "m-2", task.id)).status.state == TaskState.TASK_STATE_COMPLETED
    assert len(repo.published()) == 1


def test_the_program_of_the_guide_runs(machine: Machine, repo: ConfigRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'a2a: [announcement, "research-*"]' in BLOCKS["yaml"][0]
    monkeypatch.setenv("AGENT_URL", agent_url(up(machine, repo)))
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(BLOCKS["python"][0], "protocols.md", "exec"), {"__name__": "example"})
    assert "TASK_STATE_INPUT_REQUIRED" in out.getvalue()


def test_the_mcp_client_of_the_guide_gets_the_link_and_a_new_process_the_result(
    machine: Machine, repo: ConfigRepo
) -> None:
    scope: dict[str, Any] = {}
    exec(compile(BLOCKS["python"][1], "protocols.md", "exec"), scope)
    first = up(machine, repo)
    result = asyncio.run(scope["announce"](first.url, "none")).structured_content
    assert result["status"] == "paused", result
    first.kill()
    second = up(machine, repo)
    (question,) = result["questions"]
    second.post(f"/human-tasks/{question['continuation_id']}/resume", {"decision": "approved"})

    async def read() -> dict[str, Any]:
        async with Client(f"{second.url}/v1/mcp/prod") as client:
            return (await client.call_tool("get_run", {"run_id": result["run_id"]})).structured_content

    assert asyncio.run(read())["status"] == "succeeded"


def test_the_agents_are_tools_over_stdio_and_a_second_server_continues(machine: Machine, repo: ConfigRepo) -> None:
    up(machine, repo).terminate()
    actions = ["decline", "accept"]

    async def answer(_context: object, _params: ElicitRequestParams) -> ElicitResult:
        action = actions.pop(0)
        return ElicitResult(action=action, content={"decision": "approved"} if action == "accept" else None)

    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "kneo.cli.main", "mcp", "serve", "--env", "prod"],
        env={**machine.env, "KNEO_SERV_TRUST_ROOT": repo.pin},
        cwd=repo.folder,
    )

    async def call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
        async with Client(server, mode="2026-07-28", elicitation_callback=answer) as client:
            return (await client.call_tool(name, arguments)).structured_content

    # Each call has a server process of its own.
    paused = asyncio.run(call("announcement", {"input": "news"}))
    assert (paused["status"], len(paused["questions"])) == ("paused", 1)
    done = asyncio.run(call("get_run", {"run_id": paused["run_id"]}))
    assert (done["status"], actions) == ("succeeded", [])
    assert "published" in done["output"]


def test_a_client_over_stdio_uses_a_service_with_the_rights_of_its_key(machine: Machine, repo: ConfigRepo) -> None:
    machine.env["KNEO_SERV_API_KEYS"] = "ann:ann-key:admin"
    service = up(machine, repo, "ann-key")
    asked = ["approved"]

    async def answer(_context: object, _params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"decision": asked.pop()})

    arguments = ["-m", "kneo.cli.main", "mcp", "serve", "--env", "prod", "--service-url", service.url]
    env = {**machine.env, "KNEO_SERV_API_KEY": "ann-key", "KNEO_SERV_DATABASE_URL": "sqlite:////nowhere/kneo.sqlite"}
    server = StdioServerParameters(command=sys.executable, args=arguments, env=env, cwd=repo.folder)

    async def announce(mode: str) -> dict[str, Any]:
        async with Client(server, mode=mode, elicitation_callback=answer) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"announcement", "get_run"}
            return (await client.call_tool("announcement", {"input": "news"})).structured_content

    done = asyncio.run(announce("2026-07-28"))
    assert (done["status"], asked) == ("succeeded", [])
    assert asyncio.run(announce("legacy"))["status"] == "paused"
    runs = service.get("/runs")["runs"]
    assert {run["metadata"]["requester"] for run in runs} == {"ann"}
    machine.env["KNEO_SERV_API_KEY"] = "a-stranger"
    refused = machine.kneo("mcp", "serve", "--env", "prod", "--service-url", service.url, expect=None)
    assert refused.returncode == 3, refused.stderr


def test_the_tools_of_a_bundle_over_stdio_in_process_and_by_a_service(machine: Machine, tmp_path: Path) -> None:
    repo = ConfigRepo(tmp_path / "tools")
    (repo.folder / "shop.py").write_text("def find(arguments):\n    return {'order': arguments['id']}\n")
    parameters = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    lookup = {"description": "Find an order.", "implementation": "shop.find", "parameters": parameters}
    agent = {"name": "shop", "tools": {"include": ["lookup"], "permissions": {}}}
    spec = {"version": "v1", "targets": ["call"], "agent": agent, "tools": {"lookup": lookup}}
    repo.bundle("shop", "1.0.0", spec)
    repo.environment("prod", {"shop": "1.0.0"}, protocols={"calls": [{"bundle": "shop"}]})
    repo.commit("Serve the shop")
    process = machine.start("up", "--port", "0", "--repo", str(repo.folder), "--trust-root", repo.pin, cwd=repo.folder)
    at = {"environment": "prod", "bundle": "shop"}
    eventually(lambda: process.http.get("/calls/tools", params=at).status_code == 200)

    async def call(*options: str) -> list[str]:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "kneo.cli.main", "mcp", "serve", "--env", "prod", "--bundle", "shop", *options],
            env={**machine.env, "KNEO_SERV_TRUST_ROOT": repo.pin},
            cwd=repo.folder,
        )
        async with Client(server) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            result = await client.call_tool("lookup", {"id": "7"})
            return [*names, result.content[0].text]

    assert asyncio.run(call("--service-url", process.url)) == ["lookup", "get_call", '{"order": "7"}']
    process.terminate()
    assert asyncio.run(call()) == ["lookup", "get_call", '{"order": "7"}']
