"""Served agents as tools of an MCP server, with the official client over HTTP."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from kneo_process import eventually
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ElicitRequestParams, ElicitResult
from served_agents import lab_announcement, served_agents, without_library
from service_bench import Bench

from kneo.extensions.protocols import calls
from kneo.extensions.protocols.calls import AgentCalls
from kneo.extensions.protocols.mcp.server import tool_name
from kneo.records.run import RunStatus
from kneo.runtime.engine.wait import SettledRun
from kneo.service.events import Event


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service over prod, which serves two of three bundles over MCP."""
    folder = tmp_path_factory.mktemp("mcp")
    steps = lab_announcement()["workflow"]["steps"]
    gates = [{**steps[1], "id": "first"}, {**steps[1], "id": "second"}]
    bundles = {"asked": [*steps[:1], *gates], "plain": steps[:1], "hidden": steps[:1]}
    specs = {name: lab_announcement(made) for name, made in bundles.items()}
    with served_agents(folder, specs, mcp=["asked", "plain"]) as made:
        yield made


@asynccontextmanager
async def connected(
    house: Bench, role: str = "service", environment: str = "prod", **options: Any
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {role}-key"}
    async with httpx2.AsyncClient(headers=headers, timeout=240) as http:
        transport = streamable_http_client(f"{house.url}/v1/mcp/{environment}", http_client=http)
        async with Client(transport, **options) as client:
            yield client


def structured(result: CallToolResult) -> dict[str, Any]:
    assert isinstance(result.structured_content, dict), result
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_released_agents_are_tools_and_report_progress(house: Bench, mode: str) -> None:
    messages: list[str | None] = []

    async def note(_progress: float, _total: float | None, message: str | None) -> None:
        messages.append(message)

    async def work() -> None:
        async with connected(house, mode=mode) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == ["asked", "plain", "get_run"]
            result = await client.call_tool("plain", {"input": "hello", "session_id": "talk"}, progress_callback=note)
            assert not result.is_error, result
            found = structured(result)
            assert (found["status"], "hello" in found["output"]) == ("succeeded", True)
            again = await client.call_tool("get_run", {"run_id": found["run_id"]})
            assert structured(again)["output"] == found["output"]
        run = house.get(f"/runs/{found['run_id']}")
        assert (run["session_id"], run["metadata"]["caller_metadata"]) == ("talk", {"protocol": "mcp"})
        assert run["metadata"]["release"]["bundle"] == "plain"

    asyncio.run(work())
    assert any(message == "step_completed draft" for message in messages), messages


def test_a_gate_is_asked_in_the_client_of_a_person_who_may_answer(house: Bench) -> None:
    shown: list[str] = []

    async def approve(_context: object, params: ElicitRequestParams) -> ElicitResult:
        shown.append(params.message)
        return ElicitResult(action="accept", content={"decision": "approved"})

    async def work() -> None:
        async with connected(house, elicitation_callback=approve) as client:
            result = await client.call_tool("asked", {"input": "news"})
            assert structured(result)["status"] == "succeeded", result
        assert len(shown) == 2
        assert "news" in shown[0]
        assert f"{house.url}/console/inbox/" in shown[0]
        tasks = house.get("/human-tasks", run_id=structured(result)["run_id"], status="all")["tasks"]
        assert {task["decision"]["actor"] for task in tasks} == {"service"}

    asyncio.run(work())


@pytest.mark.parametrize(("role", "mode"), [("operator", "auto"), ("service", "legacy")])
def test_a_gate_is_a_link_where_the_caller_may_not_answer_or_the_client_cannot_ask(
    house: Bench, role: str, mode: str
) -> None:
    async def never(*_: object) -> ElicitResult:
        raise AssertionError

    async def work() -> None:
        async with connected(house, role, elicitation_callback=never, mode=mode) as client:
            result = structured(await client.call_tool("asked", {"input": "news"}))
            (question,) = result["questions"]
            assert (result["status"], question["url"].rpartition("/")[2]) == ("paused", question["continuation_id"])
            for _ in range(2):
                waiting = house.get("/human-tasks", run_id=result["run_id"])["tasks"]
                body = {"decision": "approved"}
                house.post(f"/human-tasks/{waiting[0]['id']}/resume", body, role="reviewer")
            assert structured(await client.call_tool("get_run", {"run_id": result["run_id"]}))["status"] == "succeeded"

    asyncio.run(work())


def test_a_person_who_declines_leaves_the_question_open_for_a_later_call(house: Bench) -> None:
    async def decline(*_: object) -> ElicitResult:
        return ElicitResult(action="decline")

    async def approve(*_: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"decision": "approved"})

    async def work() -> None:
        async with connected(house, elicitation_callback=decline) as client:
            result = structured(await client.call_tool("asked", {"input": "news"}))
            assert (result["status"], len(result["questions"])) == ("paused", 1)
        async with connected(house, elicitation_callback=approve) as client:
            assert structured(await client.call_tool("get_run", {"run_id": result["run_id"]}))["status"] == "succeeded"

    asyncio.run(work())


def test_steps_that_end_between_the_look_and_the_read_are_reported(
    house: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def early(_feed: object, run_id: str, _after: int, **_: object) -> AsyncIterator[Event]:
        """Report a run that runs, when it has ended."""
        await asyncio.to_thread(eventually, lambda: house.get(f"/runs/{run_id}")["status"] != "running")
        yield Event(name="status", data={"run_id": run_id, "status": "running"})

    messages: list[str | None] = []

    async def note(_progress: float, _total: float | None, message: str | None) -> None:
        messages.append(message)

    async def work() -> None:
        async with connected(house) as client:
            monkeypatch.setattr(calls, "run_events", early)
            result = await client.call_tool("plain", {"input": "hello"}, progress_callback=note)
            assert structured(result)["status"] == "succeeded"
        assert messages == ["step_completed draft"]

    asyncio.run(work())


def test_a_question_that_opens_between_two_looks_is_returned(house: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    find, answered = AgentCalls.find, list[str]()

    async def stale(self: AgentCalls, run_id: str) -> SettledRun:
        """Answer the first question between the look at the run and the read of it."""
        found = await find(self, run_id)
        if inspect.stack()[1].function != "follow" or answered:
            return found
        answered.append(found.tasks[0].id)
        body = {"decision": "approved"}
        await asyncio.to_thread(house.post, f"/human-tasks/{answered[0]}/resume", body, role="reviewer")
        return replace(found, run=replace(found.run, status=RunStatus.RUNNING), tasks=())

    async def work() -> None:
        async with connected(house) as client:
            run = structured(await client.call_tool("asked", {"input": "news"}))
            monkeypatch.setattr(AgentCalls, "find", stale)
            now = structured(await client.call_tool("get_run", {"run_id": run["run_id"]}))
            assert [each["continuation_id"] for each in now["questions"]] != answered
            assert len(now["questions"]) == len(answered) == 1

    asyncio.run(work())


def test_a_call_with_a_key_is_made_once(house: Bench) -> None:
    async def work() -> None:
        async with connected(house) as client:
            messages: list[str | None] = []

            async def note(_progress: float, _total: float | None, message: str | None) -> None:
                messages.append(message)

            calls = [client.call_tool("plain", {"input": "x"}, meta={"idempotencyKey": "k-1"}) for _ in range(4)]
            runs = {structured(result)["run_id"] for result in await asyncio.gather(*calls)}
            assert len(runs) == 1
            # The run has ended; its steps are reported all the same.
            await client.call_tool("plain", {"input": "x"}, meta={"idempotencyKey": "k-1"}, progress_callback=note)
            assert messages == ["step_completed draft"]
            other = await client.call_tool("plain", {"input": "y"}, meta={"idempotencyKey": "k-1"})
            assert structured(other)["error"] == "idempotency_key_conflict"

    asyncio.run(work())


def test_only_what_the_environment_names_is_a_tool_and_arguments_are_bounded(house: Bench) -> None:
    async def work() -> None:
        async with connected(house) as client, connected(house, environment="dev") as dev:
            assert [tool.name for tool in (await dev.list_tools()).tools] == ["get_run"]
            run = structured(await client.call_tool("plain", {"input": "mine"}))["run_id"]
            for asked, name, arguments, error in (
                (client, "hidden", {"input": "x"}, "tool_not_found"),
                (dev, "plain", {"input": "x"}, "tool_not_found"),
                (dev, "get_run", {"run_id": run}, "not_found"),
                (client, "plain", {"input": "x" * 600}, "input_too_large"),
                (client, "plain", {"input": 5}, "invalid_argument"),
                (client, "plain", {"input": "x", "environment": "dev"}, "unknown_argument"),
            ):
                result = await asked.call_tool(name, arguments)
                assert (result.is_error, structured(result)["error"]) == (True, error), result

    asyncio.run(work())


def test_keys_and_scopes_are_those_of_http(house: Bench) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    for role, environment, status in (("viewer", "prod", 403), ("service", "nowhere", 404)):
        refused = house.client(role).post(f"/mcp/{environment}", json=body, headers=headers)
        assert refused.status_code == status, refused.text
    assert house.client("nobody").post("/mcp/prod", json=body, headers=headers).status_code == 401
    assert house.client("service").get("/mcp/prod").status_code == 405
    huge = house.client("service").post("/mcp/prod", json={**body, "params": {"x": "x" * 50_000}}, headers=headers)
    assert huge.status_code == 413
    broken = house.client("service").post(
        "/mcp/prod", content=b"{", headers={**headers, "Content-Type": "application/json"}
    )
    assert broken.status_code == 400
    assert json.loads(broken.text)["error"]
    twice = json.dumps(body).replace('"params"', '"method": "tools/call", "params"').encode()
    refused = house.client("service").post(
        "/mcp/prod", content=twice, headers={**headers, "Content-Type": "application/json"}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32700)
    assert "'method' is written twice" in refused.json()["error"]["message"]


def test_names_of_tools_are_unique_and_fit_models() -> None:
    names = ["research", "a/b", "a.b", "get_run", "x" * 80, "x" * 81, "ü"]
    made = [tool_name(name) for name in names]
    assert made[0] == "research"
    assert len(set(made)) == len(names)
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isascii() for name in made)
    assert "get_run" not in made


def test_without_the_extra_a_message_names_the_command_that_installs_it(
    house: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_library(monkeypatch, sys.modules, "mcp")
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    answer = house.client("service").post("/mcp/prod", json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "mcp_not_installed")
    assert "pip install 'kneo[mcp]'" in answer.json()["hint"]


def test_the_command_names_it_as_well() -> None:
    program = "import sys; sys.modules['mcp'] = None; from kneo.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "mcp", "serve", "--env", "prod"],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 1, ran.stderr
    assert "pip install 'kneo[mcp]'" in ran.stderr
