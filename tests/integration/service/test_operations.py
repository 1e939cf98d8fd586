"""Every operation says who may ask for it, and the description says everything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from service_bench import Bench, serving
from starlette.routing import compile_path

from kneo.cli.compose import make_starter
from kneo.service.app import create_app, description, routers
from kneo.service.routing import RouteTable

OPERATIONS = RouteTable(routers())
OPEN = {"health", "live", "ready", "receive_hook", "answer_slack", "get_signing_keys", "get_protected_resource"}
KEYS_IN_MESSAGES = {"send_to_agent", "send_to_mcp_server", "send_to_bundle_tools", "answer_claude_code_hook"}
"""Operations whose idempotency key is part of a message of their protocol."""

DEFINED_BY_PROTOCOLS = KEYS_IN_MESSAGES | {
    "get_agent_card",
    "get_only_agent_card",
    "get_signing_keys",
    "get_canary_result",
    "get_protected_resource",
    "answer_slack",
}
"""Operations whose answers the specifications of Agent2Agent, MCP, Slack, JSON Web Keys, DSSE and OAuth define."""


def test_operation_ids_are_stable_and_one_of_a_kind() -> None:
    ids = [operation.id for operation in OPERATIONS if operation.id]
    assert len(ids) == len({(operation.id, operation.template) for operation in OPERATIONS})
    assert all(name.replace("_", "").isalpha() for name in ids)


def test_only_probes_and_hooks_need_no_key() -> None:
    assert {operation.id for operation in OPERATIONS if not operation.required} <= OPEN


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/runs/run_1", "get_run"),
        ("GET", "/runs/run_1", "get_run"),
        ("GET", "/v1/runs/run_1/checkpoints/diff", "diff_run_checkpoints"),
        ("POST", "/v1/human-tasks/cont_1/resume", "resume_human_task"),
        ("DELETE", "/v1/runs", None),
        ("GET", "/v1/runs/a/b", None),
        ("GET", "/v1", None),
        ("GET", "", None),
    ],
)
def test_requests_are_matched_with_operations(method: str, path: str, expected: str | None) -> None:
    found = OPERATIONS.find(method, path)
    assert (found.operation.id if found else None) == expected


@pytest.mark.parametrize("path", ["/human-tasks/cont_1/links", "/v1/human-tasks/cont_1/links"])
def test_another_method_is_told_every_one_there_is(bench: Bench, path: str) -> None:
    refused = bench.client("viewer").request("PUT", f"{bench.url}{path}")
    assert (refused.status_code, refused.json()["error"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, POST"


def test_the_description_names_security_errors_and_every_operation(bench: Bench) -> None:
    tree = bench.client().get(f"{bench.url}/openapi.json").json()
    assert set(tree["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    described = {
        item["operationId"]: item
        for verbs in tree["paths"].values()
        for item in verbs.values()
        if "operationId" in item
    }
    for operation in OPERATIONS:
        if operation.id not in described:
            continue
        item = described[operation.id]
        assert {"431", "500", "503"} <= set(item["responses"])
        if operation.required:
            assert item["security"] == [{"bearer": []}, {"apiKey": []}]
            assert {"401", "403", "422", "429"} <= set(item["responses"])
        if operation.method == "POST" and operation.required and operation.id not in KEYS_IN_MESSAGES:
            assert "Idempotency-Key" in [parameter["name"] for parameter in item["parameters"]]
    assert {operation.id for operation in OPERATIONS} <= set(described)


def test_every_answer_that_is_json_is_described_field_by_field() -> None:
    tree = description()
    for path, verbs in tree["paths"].items():
        for verb, item in verbs.items():
            done = [answer for status, answer in item["responses"].items() if status.startswith("2")]
            assert done, (verb, path)
            for answer in done:
                shape = answer.get("content", {}).get("application/json", {}).get("schema", {"$ref": ""})
                assert "$ref" in shape or item["operationId"] in DEFINED_BY_PROTOCOLS, (verb, path)


def test_a_service_below_a_path_of_another_application_looks_at_requests_as_any_other(bench: Bench) -> None:
    outer = FastAPI()
    outer.mount(
        "/kneo",
        create_app(bench.settings, bench.store, make_starter(bench.settings, bench.store, executes=lambda: True)),
    )

    async def ask(method: str, path: str) -> httpx.Response:
        headers = {"Authorization": "Bearer viewer-key"}
        way = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=way, base_url="http://test/kneo/v1", headers=headers) as client:
            return await client.request(method, path)

    assert asyncio.run(ask("GET", "/runs")).status_code == 200
    assert asyncio.run(ask("GET", "/runs?lmit=1")).json()["error"] == "unknown_query_parameters"
    assert asyncio.run(ask("GET", "/runs/a/b")).status_code == 404
    assert asyncio.run(ask("PUT", "/runs")).status_code == 405


def test_an_application_compiles_no_routes_of_the_api_for_pages_and_unknown_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr("fastapi.routing.compile_path", lambda path: compiled.append(path) or compile_path(path))
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}") as made:
        for path, status in (("/console/login", 200), ("/nothing", 404), ("/v1/nothing", 404), ("/v1/runs", 401)):
            assert httpx.get(f"{made.url}{path}").status_code == status, path
    assert "/console" in compiled
    assert not [path for path in compiled if path.removeprefix("/v1").startswith(("/runs", "/human-tasks"))]
