"""JSON that comes in and goes out over HTTP."""

from __future__ import annotations

import json
import math
from types import MappingProxyType

import pytest

from kneo.json_text import AmbiguousJson, parse_json
from kneo.service.routing import JsonResponse


def test_answers_are_compact_utf8_that_every_reader_takes() -> None:
    told = {"a": MappingProxyType({"é": (1, 2.5, None, True)}), "no number": math.nan, "no end": -math.inf}
    assert JsonResponse(told).body == '{"a":{"é":[1,2.5,null,true]},"no number":null,"no end":null}'.encode()


def test_what_a_program_nested_deeper_than_any_request_may_is_answered_too() -> None:
    deep: object = "end"
    for _ in range(400):
        deep = [deep]
    assert json.loads(JsonResponse({"deep": deep}).body) == {"deep": deep}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1e5}', {"a": 1e5}),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b"[" * 150 + b"]" * 150, json.loads("[" * 150 + "]" * 150)),
    ],
)
def test_bodies_are_read_as_json(body: bytes, value: object) -> None:
    assert parse_json(body) == value


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"a": x}', 6),
        (b'{"a": 1} x', 9),
        (b"", 0),
        (b"1e999", 0),
        (b"NaN", 0),
        (b'"\\ud800"', 0),
        (b'"\xff"', 0),
        ('{"a": 1}'.encode("utf-16"), 0),
        (b"[" * 1_000 + b"]" * 1_000, 0),
        (b"[" * 201 + b"]" * 201, 0),
    ],
)
def test_what_is_no_json_is_refused_where_it_stops_being_any(body: bytes, place: int) -> None:
    with pytest.raises(json.JSONDecodeError) as refused:
        parse_json(body)
    assert refused.value.pos == place


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"decision": "rejected", "decision": "approved"}', "'decision' is written twice"),
        (b'{"a": [{"b": 1, "\\u0062": 2}]}', "'b' is written twice"),
        (b"[" + b"9" * 309 + b".0]", "too large"),
        (b"[-" + b"9" * 400 + b".0]", "too large"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 5_000 + b"]", "digits"),
        (b"[-Infinity]", "not a JSON number"),
        (b'{"\\udfff": 1}', "half a character"),
    ],
)
def test_json_that_readers_understand_differently_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(AmbiguousJson, match=why):
        parse_json(body)
