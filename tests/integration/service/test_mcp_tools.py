"""The tools of a released bundle over MCP, with the official client over HTTP: list, call, wait, join, edit and refuse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from integration.service.test_calls import ADDED, CALLS, decide, refunds, spec
from kneo_process import eventually
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult
from served_agents import served_agents
from service_bench import Bench, Json

from kneo.extensions.protocols.mcp import gateway


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("tools")
    with served_agents(folder, {"payments": spec()}, functions=ADDED, calls=CALLS) as made:
        yield made


@asynccontextmanager
async def connected(
    house: Bench,
    role: str = "caller",
    bundle: str = "payments",
    wait: str = "30s",
    **options: Any,
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {role}-key"}
    async with httpx2.AsyncClient(headers=headers, timeout=240) as http:
        transport = streamable_http_client(f"{house.url}/v1/mcp/prod/{bundle}?wait={wait}", http_client=http)
        async with Client(transport, **options) as client:
            yield client


async def call(house: Bench, tool: str, arguments: dict[str, Any], **options: Any) -> CallToolResult:
    meta = options.pop("meta", None)
    async with connected(house, **options) as client:
        return await client.call_tool(tool, arguments, meta=meta)


def text(result: CallToolResult) -> str:
    (part,) = result.content
    return part.text


def structured(result: CallToolResult) -> dict[str, Any]:
    assert isinstance(result.structured_content, dict), result
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_are_those_of_the_signed_bundle_that_the_caller_may_call(house: Bench, mode: str) -> None:
    async def names(role: str) -> dict[str, Any]:
        async with connected(house, role, mode=mode) as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    tools = asyncio.run(names("caller"))
    assert list(tools) == ["lookup", "refund", "delete_branch", "get_call"]
    declared = spec()["tools"]["refund"]
    assert (tools["refund"].description, tools["refund"].input_schema) == ("Refund an order.", declared["parameters"])
    hints = tools["refund"].annotations
    assert (hints.read_only_hint, hints.destructive_hint, tools["lookup"].annotations.read_only_hint) == (
        False,
        True,
        True,
    )
    result = asyncio.run(call(house, "lookup", {"id": "7"}, mode=mode))
    assert (json.loads(text(result)), result.is_error) == ({"order": "7"}, False)
    assert result.meta["kneo/call_id"].startswith("run_")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_call_waits_with_a_link_and_returns_its_result_when_it_comes_again(house: Bench, mode: str) -> None:
    arguments = {"id": f"m-{mode}", "amount": 20}

    def ask() -> CallToolResult | None:
        made = asyncio.run(call(house, "refund", arguments, wait="1s", mode=mode))
        return made if structured(made)["url"] else None

    waiting = eventually(ask)
    data = structured(waiting)
    assert (waiting.is_error, data["status"], data["url"] in text(waiting)) == (False, "waiting", True)
    assert data["url"].startswith(f"{house.url}/console/inbox/cont_")
    question = {"questions": [{"id": data["url"].rpartition("/")[2]}]}
    decide(house, question, decision="edited", arguments={**arguments, "amount": 5})
    done = asyncio.run(call(house, "refund", arguments, mode=mode))
    assert (json.loads(text(done)), done.meta["kneo/call_id"]) == ({"refunded": 5}, data["call_id"])
    assert [each["amount"] for each in refunds(house) if each["id"] == arguments["id"]] == [5]
    again = asyncio.run(call(house, "get_call", {"call_id": data["call_id"]}))
    assert json.loads(text(again)) == {"refunded": 5}


def test_a_client_that_gives_up_after_a_second_and_repeats_makes_one_call(house: Bench) -> None:
    arguments = {"id": "impatient", "amount": 4}

    def approve(waiting: Json) -> None:
        decide(house, waiting, decision="approved")
        eventually(lambda: house.get(f"/runs/{waiting['id']}")["status"] == "succeeded")

    async def repeat() -> CallToolResult:
        while True:
            try:
                async with asyncio.timeout(1):
                    return await call(house, "refund", arguments, wait="60s")
            except TimeoutError:
                waiting = house.get("/calls", role="caller", status="waiting")["calls"]
                assert len(waiting) <= 1
                attempts.append(len(waiting))
                if len(attempts) == 3:
                    approve(waiting[0])

    attempts: list[int] = []
    assert json.loads(text(asyncio.run(repeat()))) == {"refunded": 4}
    assert len([each for each in refunds(house) if each["id"] == "impatient"]) == 1


def test_refusals_are_errors_of_the_tool_and_keys_bind_calls(house: Bench) -> None:
    misfit = asyncio.run(call(house, "lookup", {"id": 7}))
    assert (misfit.is_error, structured(misfit)["error"]) == (True, "invalid_arguments")
    hidden = asyncio.run(call(house, "refunds", {}))
    assert structured(hidden)["error"] == "tool_not_found"
    assert structured(asyncio.run(call(house, "get_call", {"call_id": "run_x"})))["error"] == "call_not_found"
    assert structured(asyncio.run(call(house, "get_call", {})))["error"] == "validation_error"
    failed = asyncio.run(call(house, "lookup", {"id": "none"}))
    assert (failed.is_error, "no such order" in text(failed)) == (True, True)
    keyed = [
        asyncio.run(call(house, "refund", {"id": "k", "amount": 1}, wait="1s", meta={"idempotencyKey": key}))
        for key in ("a", "a", "b")
    ]
    ids = [structured(each)["call_id"] for each in keyed]
    assert (ids[0] == ids[1], ids[0] == ids[2]) == (True, False)
    for each in set(ids):
        house.post(f"/calls/{each}/cancel", role="caller")
    cancelled = asyncio.run(call(house, "get_call", {"call_id": ids[0]}))
    assert (cancelled.is_error, structured(cancelled)["error"]) == (True, "cancelled")


def test_a_bundle_that_is_not_served_is_not_found_and_another_key_is_refused(house: Bench) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for role, path, status in (
        ("caller", "prod/unknown", 404),
        ("caller", "dev/payments", 404),
        ("viewer", "prod/payments", 403),
    ):
        answer = house.ask("POST", f"/mcp/{path}", body, role=role)
        assert answer.status_code == status, answer.text
    assert house.ask("POST", "/mcp/prod", body, role="caller").status_code == 403


def test_a_call_reports_progress_while_it_waits(house: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "PROGRESS_SECONDS", 0.2)
    messages: list[str | None] = []

    async def note(_progress: float, _total: float | None, message: str | None) -> None:
        messages.append(message)

    async def work() -> CallToolResult:
        async with connected(house, wait="1s") as client:
            return await client.call_tool("refund", {"id": "p", "amount": 1}, progress_callback=note)

    house.post(f"/calls/{structured(asyncio.run(work()))['call_id']}/cancel", role="caller")
    assert "Waiting for approval" in messages
