"""The cost of calls of the tools of a release: over MCP and over HTTP, beside the same call to the MCP server behind.

The official client calls the server behind and Kneo in turns, over connections that stay open; processes of their own serve both.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.agents import conversation
from benchmarks.agents.calls_service import GATED

SERVER = conversation.ROOT / "tests" / "support" / "mcp_server.py"
KEY = {"Authorization": "Bearer caller-key"}
HTTP_LIMITS = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
AIMS = {"SQLite": 15, "PostgreSQL": 20}
"""The most milliseconds that a call takes more than the direct one, in the middle."""

Costs = dict[str, float]
Stated = dict[str, str]


def measure_calls(count: int, waiting: int) -> dict[str, Stated]:
    """Return the costs of calls on each kind of database, each with its aim."""
    # The databases of tests need not outlive them; those of people reach the disk.
    databases.SPEED.update(shared_buffers="512MB", autovacuum="on", fsync="on", synchronous_commit="on")
    server = databases.start_server()
    try:
        urls = {"SQLite": None, "PostgreSQL": server.url(server.create())}
        return {
            f"calls, {name}": _with_aims(_call_costs(count, waiting, url), AIMS[name]) for name, url in urls.items()
        }
    finally:
        server.stop()


def _with_aims(costs: Costs, aim: int) -> Stated:
    aims = {"overhead p50 ms": f"at most {aim}", "calls per second, 8 at once": "at least 60"}
    aims |= {name: "at most 0" for name in costs if name.startswith("threads more")}
    return {name: f"{value:.1f}" + (f" (aim: {aims[name]})" if name in aims else "") for name, value in costs.items()}


def _call_costs(count: int, waiting: int, database_url: str | None) -> Costs:
    """Return what calls cost: milliseconds, calls per second, and what calls that wait hold."""
    with tempfile.TemporaryDirectory() as name, _printing([sys.executable, str(SERVER), "--http"]) as behind:
        url = database_url or f"sqlite:///{name}/kneo.sqlite"
        command = [sys.executable, "-m", "benchmarks.agents.calls_service", name, url, behind.said]
        with _printing(command) as service:
            return asyncio.run(_measure(behind.said, service.said, service.pid, count, waiting))


class _Process:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.pid, self.said = process.pid, process.stdout.readline().strip()


@contextmanager
def _printing(command: list[str]) -> Iterator[_Process]:
    """Run a process that prints one line when it serves."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=conversation.ROOT
    ) as process:
        try:
            yield _Process(process)
        finally:
            process.kill()


async def _measure(port: str, url: str, pid: int, count: int, waiting: int) -> Costs:
    numbers = itertools.count()
    async with (
        _client(f"http://127.0.0.1:{port}/mcp") as direct,
        _client(f"{url}/v1/mcp/prod/shop") as gateway,
        httpx2.AsyncClient(base_url=f"{url}/v1", headers=KEY, timeout=240, limits=HTTP_LIMITS) as http,
    ):

        async def over_http() -> None:
            body = {"environment": "prod", "bundle": "shop", "tool": "echo1", "arguments": {"text": f"{next(numbers)}"}}
            found = (await http.post("/calls", json=body)).raise_for_status().json()
            assert found["outcome"] == "success", found

        async def through_mcp(client: Client, tool: str) -> None:
            found = await client.call_tool(tool, {"text": f"{next(numbers)}"})
            assert not found.is_error, found

        works: dict[str, Callable[[], Awaitable[object]]] = {
            "direct": lambda: through_mcp(direct, "echo"),
            "gateway": lambda: through_mcp(gateway, "echo1"),
            "http": over_http,
            "list": lambda: gateway.list_tools(cache_mode="bypass"),
        }
        taken: dict[str, list[float]] = {name: [] for name in works}
        for number in range(count + 20):
            for name, work in works.items():
                started = time.perf_counter()
                await work()
                if number >= 20:
                    taken[name].append((time.perf_counter() - started) * 1_000)
        costs = {f"{name} p50 ms": statistics.median(each) for name, each in taken.items()}
        costs |= {f"{name} p95 ms": statistics.quantiles(each, n=20)[-1] for name, each in taken.items()}
        costs["overhead p50 ms"] = costs["gateway p50 ms"] - costs["direct p50 ms"]
        costs["overhead p95 ms"] = costs["gateway p95 ms"] - costs["direct p95 ms"]
        spent = _processor_ms(pid)
        for _ in range(count):
            await works["gateway"]()
        costs["processor ms of the service"] = (_processor_ms(pid) - spent) / count
        costs["calls per second, 8 at once"] = await _per_second(over_http, count, 8)
        costs |= await _waiting(http, url, pid, waiting)
    return costs


async def _per_second(work: Callable[[], Awaitable[object]], count: int, at_once: int) -> float:
    async def some() -> None:
        for _ in range(count // at_once):
            await work()

    started = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return count // at_once * at_once / (time.perf_counter() - started)


async def _waiting(http: httpx2.AsyncClient, url: str, pid: int, waiting: int) -> Costs:
    """Return what requests hold that wait for people, each on a connection of its own."""
    before = _state_of(pid)
    limits = httpx2.Limits(max_connections=waiting, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=f"{url}/v1", headers=KEY, timeout=600, limits=limits) as patient:
        body = {"environment": "prod", "bundle": "shop", "tool": GATED}
        pending = [
            asyncio.create_task(
                patient.post("/calls", params={"wait": "600s"}, json=body | {"arguments": {"text": str(number)}})
            )
            for number in range(waiting)
        ]
        while (await _open(http)) < waiting:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.5)
        held, spent = _state_of(pid), _processor_ms(pid)
        await asyncio.sleep(WAITED_SECONDS)
        spent = _processor_ms(pid) - spent
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return {
        f"threads more, {waiting} waiting": held["Threads"] - before["Threads"],
        f"MB more, {waiting} waiting": (held["VmRSS"] - before["VmRSS"]) / 1024,
        f"processor ms each second, {waiting} waiting": spent / WAITED_SECONDS,
    }


WAITED_SECONDS = 10


async def _open(http: httpx2.AsyncClient) -> int:
    answer = await http.get("/human-tasks/summary", headers={"Authorization": "Bearer admin-key"})
    found = answer.raise_for_status().json()
    return int(found["waiting"])


def _processor_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000 / os.sysconf("SC_CLK_TCK")


def _state_of(pid: int) -> dict[str, float]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): float(words[1]) for words in lines if words[0] in {"Threads:", "VmRSS:"}}


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=KEY, timeout=240) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client
