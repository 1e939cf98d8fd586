"""Every operation says who may ask for it, and the description says everything."""

from __future__ import annotations

import pytest
from service_bench import Bench

from kneo.service.app import ROUTES, description
from kneo.service.operations import Operations

OPERATIONS = Operations(module.router for module in ROUTES)
OPEN = {"health", "live", "ready", "receive_hook"}


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
    assert (found.id if found else None) == expected


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
        if operation.required:
            assert item["security"] == [{"bearer": []}, {"apiKey": []}]
            assert {"401", "403", "422", "429"} <= set(item["responses"])
        if operation.method == "POST" and operation.required:
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
                assert "$ref" in shape, (verb, path)
