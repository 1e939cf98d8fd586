"""What a service tells OpenTelemetry, heard by a receiver of its own protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from config_repo import FUNCTIONS
from kneo_process import Machine
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from service_bench import APPROVE, DRAFT, PUBLISH, spec_of

pytestmark = pytest.mark.e2e

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Receiver:
    """Takes traces over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, dict[str, object], str]] = []
        self.services: set[str] = set()

    def take(self, body: bytes) -> None:
        told = ExportTraceServiceRequest.FromString(body)
        for resource in told.resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                for span in scope.spans:
                    facts = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
                    self.spans.append((span.name, span.trace_id.hex(), facts, span.parent_span_id.hex()))

    def named(self, name: str) -> list[tuple[str, str, dict[str, object], str]]:
        return [span for span in self.spans if span[0] == name]


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    heard = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            heard.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield heard, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_runs_and_steps_are_told(tmp_path: Path, receiver: tuple[Receiver, str]) -> None:
    heard, address = receiver
    machine = Machine(
        tmp_path,
        f"sqlite:///{tmp_path / 'kneo.sqlite'}",
        KNEO_SERV_OTEL_ENABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=address,
        OTEL_SERVICE_NAME="kneo-under-test",
        KNEO_SERV_OTEL_RECORD_ARGUMENTS="true",
    )
    (tmp_path / "lab_functions.py").write_text(FUNCTIONS)
    service = machine.start("service", "serve", "--port", "0")
    body = {"input": "Write about password=hunter22", "spec": spec_of(DRAFT, APPROVE, PUBLISH)}
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    run = service.http.post("/runs", json=body, headers=headers).json()
    request = run["metadata"]["pending_human_request"]["request_id"]
    service.post(f"/human-tasks/{run['continuation_id']}/resume", {"request_id": request, "decision": "approved"})
    service.http.get("/runs/nope")
    service.terminate()
    assert heard.services == {"kneo-under-test"}
    (created,) = heard.named("create_run")
    assert created[1] == TRACE
    assert (created[2]["http.route"], created[2]["http.response.status_code"]) == ("/runs", 200)
    (dispatched,) = heard.named("kneo.queue.dispatch")
    assert (dispatched[1], dispatched[2]["kneo.run_id"]) == (TRACE, run["run_id"])
    assert [span[2]["kneo.step_id"] for span in heard.named("kneo.step")] == ["draft", "publish"]
    assert len(heard.named("kneo.worker.lease")) == 2
    assert heard.named("kneo.continuation.lock")[0][2]["kneo.decision"] == "approved"
    assert heard.named("get_run")[0][2]["http.response.status_code"] == 404
    first = heard.named("kneo.step")[0][2]
    assert str(first["kneo.input"]).startswith("Write about password=[REDACTED]")
    assert "kneo.output" not in first
    assert "hunter22" not in str(heard.spans)


def test_a_local_run_is_told_as_well(tmp_path: Path, receiver: tuple[Receiver, str]) -> None:
    heard, address = receiver
    machine = Machine(
        tmp_path,
        f"sqlite:///{tmp_path / 'kneo.sqlite'}",
        KNEO_SERV_OTEL_ENABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=address,
    )
    (tmp_path / "lab_functions.py").write_text(FUNCTIONS)
    spec = spec_of(DRAFT, PUBLISH)
    components = spec["components"]
    assert isinstance(components, dict)
    for name in set(components["functions"]) - {"draft", "publish"}:
        del components["functions"][name]
    (tmp_path / "lab.json").write_text(json.dumps(spec))
    run = machine.json("run", "lab.json", "--input", "in", cwd=tmp_path)
    (dispatched,) = heard.named("kneo.queue.dispatch")
    assert dispatched[2]["kneo.run_id"] == run["run_id"]
    assert [span[2]["kneo.step_id"] for span in heard.named("kneo.step")] == ["draft", "publish"]


LIBRARIES = """
import asyncio
import httpx
from a2a.client.transports.jsonrpc import JsonRpcTransport
from a2a.types import GetTaskRequest
from opentelemetry import trace
from kneo.settings import Tracing
from kneo.telemetry import configure_tracing, span

async def fail():
    reply = {"jsonrpc": "2.0", "id": "1", "error": {"code": -32602, "message": "marker-4711"}}
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=reply)))
    try:
        await JsonRpcTransport(http, None, "http://a.example").get_task(GetTaskRequest(id="1"))
    except Exception as error:
        assert "marker-4711" in str(error)
    else:
        raise AssertionError

with configure_tracing(Tracing(enabled=True), version="1"), span("kneo.step"):
    asyncio.run(fail())
    with trace.get_tracer("mcp-python-sdk").start_as_current_span("tools/call") as called:
        called.set_status(trace.StatusCode.ERROR, "marker-4711")
"""


def test_no_span_of_a_library_is_sent(receiver: tuple[Receiver, str]) -> None:
    heard, address = receiver
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": address}
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, env=env, timeout=240)
    assert [span[0] for span in heard.spans] == ["kneo.step"]


def test_a_reconciliation_is_a_trace(tmp_path: Path, receiver: tuple[Receiver, str]) -> None:
    heard, address = receiver
    machine = Machine(
        tmp_path,
        f"sqlite:///{tmp_path / 'kneo.sqlite'}",
        KNEO_SERV_OTEL_ENABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=address,
    )
    made = machine.json("init", "team")
    machine.kneo("controller", "run", "--repo", "team", "--once", expect=None)
    (reconciled,) = heard.named("kneo.reconcile")
    assert str(reconciled[2]["kneo.revision"])
    (fetched,) = heard.named("kneo.source.fetch")
    places = heard.named("kneo.reconcile.environment")
    assert {fetched[1], *(span[1] for span in places)} == {reconciled[1]}
    assert sorted(str(span[2]["kneo.environment"]) for span in places) == sorted(made["environments"])
    assert all(span[2]["kneo.state"] for span in places)
