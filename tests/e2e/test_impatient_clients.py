"""A client of MCP that gives up after a second, and services that are killed: one question, one effect, one result."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from config_repo import ConfigRepo
from kneo_process import Machine, Process, eventually
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult

from kneo.trust.keys import PrivateKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SHOP = """
from pathlib import Path

def refund(arguments, key):
    with Path(__file__).with_name("refunds.txt").open("a") as log:
        log.write(key + "\\n")
    return {"refunded": arguments["id"]}
"""
ORDER = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


@pytest.fixture
def machine(database_url: str, tmp_path: Path) -> Iterator[Machine]:
    keys = "ci-bot:bot-key:caller;ann:ann-key:admin"
    machine = Machine(tmp_path / "house", database_url, KNEO_SERV_API_KEYS=keys)
    if database_url.startswith("postgres"):
        machine.env["KNEO_SERV_SERVICE_KEY"] = PrivateKey.generate().dump().decode()
    yield machine
    machine.stop()


@pytest.fixture
def shop(tmp_path: Path) -> ConfigRepo:
    """A repository whose prod serves a tool that people approve."""
    repo = ConfigRepo(tmp_path / "tools")
    (repo.folder / "shop.py").write_text(SHOP)
    refund = {"description": "Refund.", "implementation": "shop.refund", "parameters": ORDER}
    spec = {
        "version": "v1",
        "targets": ["call"],
        "agent": {"name": "shop", "tools": {"include": ["refund"], "permissions": {}}},
        "tools": {"refund": {**refund, "review": {"before": {"human": "finance"}}}},
        "components": {"humans": {"finance": {"description": "May it be done?"}}},
    }
    repo.bundle("shop", "1.0.0", spec)
    repo.environment("prod", {"shop": "1.0.0"}, protocols={"calls": [{"bundle": "shop"}]})
    repo.commit("Serve the shop")
    return repo


def up_shop(machine: Machine, shop: ConfigRepo) -> Process:
    process = machine.start("up", "--port", "0", "--repo", str(shop.folder), "--trust-root", shop.pin, cwd=shop.folder)
    process.http.headers["Authorization"] = "Bearer ann-key"
    at = {"environment": "prod", "bundle": "shop"}
    eventually(lambda: process.http.get("/calls/tools", params=at).status_code == 200)
    return process


def test_a_client_that_gives_up_after_a_second_gets_one_result_of_services_that_are_killed(
    machine: Machine, shop: ConfigRepo
) -> None:
    """One service is killed while the call waits, and one after the effect, before its result was returned."""
    service = up_shop(machine, shop)

    async def attempt() -> CallToolResult | None:
        headers = {"Authorization": "Bearer bot-key"}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1), httpx2.AsyncClient(headers=headers, timeout=240) as http:
                transport = streamable_http_client(f"{service.url}/v1/mcp/prod/shop?wait=60s", http_client=http)
                async with Client(transport) as client:
                    return await client.call_tool("refund", {"id": "7"})
        return None

    def waiting() -> list[dict[str, Any]]:
        return service.get("/human-tasks", status="pending")["tasks"]

    eventually(lambda: asyncio.run(attempt()) or waiting())
    service.kill()
    service = up_shop(machine, shop)
    for _ in range(2):
        assert asyncio.run(attempt()) is None
    (task,) = waiting()
    service.post(f"/human-tasks/{task['continuation_id']}/resume", {"decision": "approved"})
    eventually(lambda: service.get(f"/runs/{task['run_id']}")["status"] == "succeeded")
    service.kill()
    service = up_shop(machine, shop)
    result = eventually(lambda: asyncio.run(attempt()))
    assert (json.loads(result.content[0].text), result.meta["kneo/call_id"]) == ({"refunded": "7"}, task["run_id"])
    assert len((shop.folder / "refunds.txt").read_text().splitlines()) == 1
    assert len(service.get("/human-tasks", status="all")["tasks"]) == len(service.get("/runs")["runs"]) == 1
