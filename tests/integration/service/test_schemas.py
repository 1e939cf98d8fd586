"""Schemas and patterns that would stop a service: refused before anything runs, or answered like any others."""

from __future__ import annotations

import json

import pytest
from service_bench import DRAFT, Bench, spec_of

Json = dict[str, object]

POISON = "^(a+)+$"
BAIT = "a" * 60 + "!"
ASK: Json = {"id": "ask", "kind": "human", "ref": "editor"}
CHECK: Json = {"id": "check", "kind": "function", "ref": "publish"}

NEVER_ENDS = {"type": "object", "$ref": "#"}
MUTUAL = {
    "type": "object",
    "$ref": "#/$defs/a",
    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
}
LOOKS_AHEAD = {"type": "object", "properties": {"code": {"pattern": "^(?=a)"}}}
REMOTE = {"$ref": "https://schemas.example/evil.json"}


def asking(**human: object) -> Json:
    return spec_of(DRAFT, ASK, humans={"editor": {"description": "Which?", **human}})


def checking(**function: object) -> Json:
    return spec_of(CHECK, functions={"publish": {"implementation": "lab_functions.publish", **function}})


def answer(bench: Bench, spec: Json, *, expect: int = 200, **body: object) -> Json:
    run = bench.start(spec)
    assert run["status"] == "paused", run
    # What backtracks here would not end before the client gives up.
    return bench.answer(run, decision="provided", expect=expect, **body)


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        ({"type": "string", "pattern": POISON}, BAIT),
        ({"type": "object", "patternProperties": {POISON: {}}, "additionalProperties": False}, json.dumps({BAIT: 1})),
        ({"type": "object", "propertyNames": {"pattern": POISON}}, json.dumps({BAIT: 1})),
    ],
)
def test_an_answer_to_a_pattern_that_backtracks_is_refused_at_once(bench: Bench, schema: Json, content: str) -> None:
    refused = answer(bench, asking(schema=schema), content=content, expect=422)
    assert refused["error"] == "human_input_invalid"


def test_an_answer_that_fits_such_a_pattern_is_taken(bench: Bench) -> None:
    assert answer(bench, asking(schema={"type": "string", "pattern": POISON}), content="aaa")["status"] == "succeeded"


def test_a_function_with_such_a_pattern_does_not_stop_the_worker(bench: Bench) -> None:
    spec = checking(input_schema={"type": "string", "pattern": POISON})
    failed = bench.start(spec, input=BAIT)
    assert failed["error"]["type"] == "function_input_invalid"
    assert bench.start(spec, input="aaa")["status"] == "succeeded"


@pytest.mark.parametrize("schema", [NEVER_ENDS, MUTUAL, LOOKS_AHEAD, REMOTE])
@pytest.mark.parametrize("place", ["schema", "input_schema", "output_schema"])
def test_a_schema_that_cannot_be_used_is_refused_before_anything_runs(bench: Bench, schema: Json, place: str) -> None:
    spec = asking(schema=schema) if place == "schema" else checking(**{place: schema})
    refused = bench.start(spec, expect=400)
    assert refused["error"] == "spec_invalid"
    assert any(found["code"].startswith("E_JSON_SCHEMA") for found in refused["detail"]["diagnostics"])


def test_the_pattern_of_a_field_is_bounded_too(bench: Bench) -> None:
    field = {"name": "code", "pattern": "(a+)+"}
    run = bench.start(asking(fields=[field]))
    refused = bench.answer(run, values={"code": BAIT}, expect=422)
    assert refused["fields"][0]["field"] == "code"
    assert bench.answer(run, values={"code": "aaa"})["status"] == "succeeded"
    refused = bench.start(asking(fields=[{**field, "pattern": r"(?<!b)a"}]), expect=400)
    assert refused["error"] == "spec_invalid"
