"""Every message of the MCP endpoint of a bundle is valid by the published schema of its protocol version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from integration.service.test_calls import ADDED, CALLS, asking, decide, spec
from integration.service.test_mcp_tools import structured
from jsonschema import Draft202012Validator
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitRequestParams, ElicitResult
from served_agents import served_agents
from service_bench import Bench

from kneo.extensions.protocols.mcp import gateway

RESULTS = {
    "initialize": ("InitializeResult",),
    "server/discover": ("DiscoverResult",),
    "tools/list": ("ListToolsResult",),
    "tools/call": ("CallToolResult", "InputRequiredResult"),
}
"""The definitions of the result of each method; those that a version does not have are not among its results."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with served_agents(tmp_path_factory.mktemp("schema"), {"payments": spec()}, functions=ADDED, calls=CALLS) as made:
        yield made


class Recorded(httpx2.AsyncHTTPTransport):
    """A transport that keeps each request with the bytes of its response."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[tuple[dict[str, Any], list[bytes]]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST":
            chunks: list[bytes] = []
            self.exchanges.append((json.loads(request.content), chunks))
            response.stream = _Kept(response.stream, chunks)
        return response

    def messages(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each message from the server, with the request whose response had it."""
        for request, chunks in self.exchanges:
            body = b"".join(chunks).decode()
            lines = [line.removeprefix("data:") for line in body.splitlines() if line.startswith("data:")] or [body]
            yield from ((request, json.loads(line)) for line in lines if line.strip())


class _Kept(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, chunks: list[bytes]) -> None:
        self.stream, self.chunks = stream, chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            self.chunks.append(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_every_message_is_valid_by_the_published_schema(
    house: Bench, mode: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "PROGRESS_SECONDS", 0.2)
    schema = json.loads((Path(__file__).parent / f"{version}.json").read_text())
    transport = Recorded()

    async def declined(_context: object, _params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="decline")

    async def note(*_progress: object) -> None:
        pass

    async def work() -> None:
        headers = {"Authorization": "Bearer caller-key"}
        async with httpx2.AsyncClient(headers=headers, timeout=240, transport=transport) as http:
            reached = partial(streamable_http_client, f"{house.url}/v1/mcp/prod/payments?wait=1s", http_client=http)
            async with Client(reached(), mode=mode) as client:
                await client.list_tools()
                await client.call_tool("lookup", {"id": "7"})
                await client.call_tool("lookup", {"id": 7})
                await client.call_tool("unknown", {})
                made = await client.call_tool("refund", {"id": mode, "amount": 1}, progress_callback=note)
                call = structured(made)
                await client.call_tool("get_call", {"call_id": call["call_id"]})
            async with Client(reached(), mode=mode, elicitation_callback=declined) as client:
                await client.call_tool("refund", {"id": mode, "amount": 1})
                decide(house, await asyncio.to_thread(asking, house, {"id": call["call_id"]}), decision="approved")
                await client.call_tool("refund", {"id": mode, "amount": 1})

    asyncio.run(work())
    kinds = set()
    for request, message in transport.messages():
        _check(schema, message, ("JSONRPCMessage",))
        if "method" in message:
            kinds.add(message["method"])
            _check(schema, message, ("ServerRequest" if "id" in message else "ServerNotification",))
        elif "result" in message:
            kinds |= {request["method"], message["result"].get("resultType")}
            _check(schema, message["result"], RESULTS[request["method"]])
    of_version = {"server/discover", "input_required"} if mode == "auto" else {"initialize"}
    assert of_version | {"tools/list", "tools/call", "notifications/progress"} <= kinds


def _validator(schema: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({**schema, "$ref": f"#/$defs/{name}"})


def _check(schema: dict[str, Any], value: object, names: tuple[str, ...]) -> None:
    problems = {name: [*_validator(schema, name).iter_errors(value)] for name in names if name in schema["$defs"]}
    assert problems, names
    assert not all(problems.values()), (value, problems)
