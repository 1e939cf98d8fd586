"""A text that a guardrail withholds leaves the service by no door, and a text that nothing checks by each of them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from console_pages import Browser, HtmlPage, signed_in
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from model_server import Call, Reply, model_server
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from served_agents import served_agents
from service_bench import Bench
from sqlalchemy import select

from kneo import telemetry
from kneo.settings import Tracing
from kneo.store.tables import metadata

MARKER = "marker-4711"
SESSION = "talk"

FUNCTIONS = f"""

def reports(text):
    return {{"passed": "{MARKER}" not in text, "reason": text}}


def raises(text):
    raise ValueError(text)


def tell(arguments):
    return "It is {MARKER}."
"""

KEYWORD = {"id": "g", "type": "keyword", "config": {"keywords": ["MARKER-"]}}
REGEX = {"id": "g", "type": "regex", "config": {"patterns": ["marker-[0-9]+"]}}

WITHHELD: Mapping[str, dict[str, Any]] = {
    "output-keyword-block": {"output": [KEYWORD]},
    "output-function-retry": {"output": [{"id": "g", "type": "function", "ref": "reports", "action": "retry"}]},
    "output-function-raises": {"output": [{"id": "g", "type": "function", "ref": "raises"}]},
    "output-agent-block": {"output": [{"id": "g", "type": "agent", "ref": "judge"}]},
    "workflow-regex-redact": {"workflow": [{**REGEX, "action": "redact"}]},
    "tool-keyword-block": {"tool": [KEYWORD]},
}
"""The guardrails of the agent, by the name of its bundle."""

DOORS = frozenset(
    {
        "deltas and events",
        "Agent2Agent",
        "MCP",
        "spans",
        "console",
        "GET /v1/runs",
        "GET /v1/runs/{run_id}",
        "GET /v1/runs/{run_id}/replay",
        "GET /v1/runs/{run_id}/trace",
        "GET /v1/runs/{run_id}/steps",
        "GET /v1/runs/{run_id}/checkpoints",
        "GET /v1/runs/{run_id}/conversation",
        "GET /v1/sessions/{session_id}/messages",
        "table runs",
        "table session_messages",
    }
)
"""The doors by which a text leaves that nothing checks: none of them is shut for another reason."""


def spec(name: str, guardrails: dict[str, Any]) -> dict[str, Any]:
    model = {"provider": "openai", "name": "tells", "extra": {"api": "chat"}}
    uses = {"include": ["tell"], "permissions": {"allow_network": False}}
    writer = {"name": "writer", "model": model, "strategy": "react", "memory": {"policy": "full"}}
    if name.startswith("tool-"):
        writer |= {"tools": uses, "model": {**model, "name": "calls"}}
    functions = {each: {"implementation": f"lab_functions.{each}"} for each in ("reports", "raises")}
    steps = [{"id": "begin", "kind": "human", "ref": "editor"}, {"id": "draft", "kind": "agent", "ref": "writer"}]
    return {
        "version": "v1",
        "agent": {"name": "root", "model": model},
        "workflow": {"type": "sequential", "name": "lab", "steps": steps},
        "tools": {"tell": {"description": "Tell.", "implementation": "lab_functions.tell"}},
        "components": {
            "agents": {
                "writer": {**writer, "guardrails": guardrails},
                "judge": {"name": "judge", "model": {**model, "name": "judges"}},
            },
            "functions": functions,
            "humans": {"editor": {"description": "Begin?"}},
        },
    }


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this process, with content."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry._state, "tracer", provider.get_tracer("kneo"))
    monkeypatch.setattr(telemetry._state, "tracing", Tracing(enabled=True, record_arguments=True, record_results=True))
    return exporter


@pytest.fixture
def house(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    told, judged = Reply(f"It is {MARKER}."), Reply(f"No: it says {MARKER}.")
    called = [Reply(calls=[Call("tell", {})]), Reply("Done.")]
    script = {"tells": [told] * 4, "judges": [judged], "calls": called}
    specs = {name: spec(name, guardrails) for name, guardrails in {**WITHHELD, "open": {}}.items()}
    with model_server(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setattr("service_bench.MORE_FUNCTIONS", FUNCTIONS)
        with served_agents(tmp_path / "served", specs, migrated_url, a2a=["*"], mcp=["*"]) as made:
            yield made
    Browser.close_all()


def send(house: Bench, bundle: str, method: str, text: str, **message: str) -> str:
    """Send a message of Agent2Agent and return the whole response."""
    parts = [{"text": text}]
    body = {"message": {"role": "ROLE_USER", "messageId": f"{bundle}-{text}", "parts": parts, **message}}
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": body}
    answer = house.client().post(f"/a2a/prod/{bundle}", json=call, headers={"A2A-Version": "1.0"})
    assert answer.status_code == 200, answer.text
    return answer.text


def run(house: Bench, bundle: str) -> dict[str, str]:
    """Run a bundle, read by a stream of deltas, and return what each door shows of the run."""
    session = f"{SESSION}-{bundle}"
    task = json.loads(send(house, bundle, "SendMessage", "Go.", contextId=session))["result"]["task"]
    seen, ready = list[object](), threading.Event()

    def follow() -> None:
        with house.stream(f"/runs/{task['id']}/events?deltas=1") as events:
            for event in events:
                seen.append(event)
                ready.set()

    following = threading.Thread(target=follow)
    following.start()
    assert ready.wait(240)
    streamed = send(house, bundle, "SendStreamingMessage", "approved", taskId=task["id"])
    following.join(240)
    open_tasks = house.get("/human-tasks", status="all", run_id=task["id"])["tasks"]
    assert isinstance(open_tasks, list)
    about = {"run_id": task["id"], "session_id": session, "continuation_id": open_tasks[0]["continuation_id"]}
    doors = {"deltas and events": str(seen), "Agent2Agent": streamed, "MCP": asyncio.run(over_mcp(house, task["id"]))}
    page = f"/console/runs/{task['id']}"
    return doors | over_http(house, about) | {"console": in_console(house, page, below=page)}


async def over_mcp(house: Bench, run_id: str) -> str:
    headers = {"Authorization": "Bearer service-key"}
    async with httpx2.AsyncClient(headers=headers, timeout=240) as http:
        transport = streamable_http_client(f"{house.url}/v1/mcp/prod", http_client=http)
        async with Client(transport) as client:
            return str(await client.call_tool("get_run", {"run_id": run_id}))


def over_http(house: Bench, about: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the response of every GET of the HTTP API about a run, its session and its task; of every other one without them."""
    elsewhere = {"environment": "prod", "name": "prod", "bundle": "open", "version": "1.0.0", "reference": "none"}
    queries: dict[str, dict[str, str]] = {"conversation": {"whole": "true"}, "messages": {"environment": "prod"}}
    paths = house.client().get("/../openapi.json").json()["paths"]
    found = {}
    for path, methods in paths.items():
        named = frozenset(re.findall(r"{(\w+)}", path))
        wanted = bool(named) and named <= about.keys() if about is not None else named <= elsewhere.keys()
        if "get" in methods and wanted and not path.endswith(("/events", "/stream")):
            params = queries.get(path.rpartition("/")[2])
            answer = house.client().get("/.." + path.format_map(about or elsewhere), params=params)
            assert answer.status_code != 500, answer.text
            found[f"GET {path}"] = answer.text
    return found


def in_console(house: Bench, *first: str, below: str = "nothing") -> str:
    """Return pages of the console, and those below an address that they lead to."""
    browser, pages, waiting = signed_in(house.url, "admin"), dict[str, str](), list(first)
    while waiting:
        path = waiting.pop()
        if path not in pages:
            answer = browser.client.get(path)
            pages[path] = answer.text
            if "text/html" in answer.headers.get("content-type", ""):
                waiting += [link for link in HtmlPage(answer.text).links if link.startswith(f"{below}/")]
    return str(pages)


def tables(house: Bench) -> dict[str, str]:
    """Return the rows of every table but the journal, which only the run itself reads."""
    with house.store.read() as tx:
        return {
            f"table {table.name}": str([tuple(row) for row in tx.connection.execute(select(table))])
            for table in metadata.sorted_tables
            if table.name != "agent_journal"
        }


def everywhere(house: Bench, exporter: InMemorySpanExporter) -> dict[str, str]:
    """Return what the doors show that are about no single run."""
    lists = in_console(house, "/console/runs", "/console/inbox?show=all", "/console/audit")
    spans = " ".join(span.to_json() for span in exporter.get_finished_spans())
    return {**tables(house), **over_http(house), "lists of the console": lists, "spans": spans}


def test_a_withheld_text_leaves_by_no_door_and_a_free_one_by_each(
    house: Bench, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("kneo", "kneo_serv"):
        caplog.set_level(logging.DEBUG, name)
    leaks = {}
    for bundle in WITHHELD:
        leaks |= {f"{bundle}: {door}": text for door, text in run(house, bundle).items() if MARKER in text}
    shown = everywhere(house, exporter)
    shown |= {f"log {each.name}": each.getMessage() for each in caplog.records}
    leaks |= {door: text for door, text in shown.items() if MARKER in text}
    assert {
        door: text[max(0, text.index(MARKER) - 300) : text.index(MARKER) + 100] for door, text in leaks.items()
    } == {}
    doors = {**run(house, "open"), **everywhere(house, exporter)}
    assert DOORS - {door for door, text in doors.items() if MARKER in text} == set()
