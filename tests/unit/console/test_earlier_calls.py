"""The results of earlier calls on the page of a task: an object of plain values as a table, everything else as its text."""

from __future__ import annotations

import json

import pytest

from kneo.service.console.answer_form import _fields


def call(text: str, characters: int | None = None) -> dict[str, object]:
    return {"result_preview": text, "characters": len(text) if characters is None else characters}


def test_an_object_of_plain_values_is_a_table() -> None:
    text = json.dumps({"amount": 120, "already_paid": 20, "open": True, "note": None, "from": "Bolt Ltd"})
    assert _fields(call(text)) == [
        ("amount", "120"),
        ("already_paid", "20"),
        ("open", "true"),
        ("note", "null"),
        ("from", "Bolt Ltd"),
    ]


@pytest.mark.parametrize("text", ["Paid.", "[1, 2]", '{"lines": [1]}', '{"a": {"b": 1}}', '{"a": 1, "a": 2}', "", "7"])
def test_other_results_are_shown_as_they_are(text: str) -> None:
    assert _fields(call(text)) == []


def test_a_cut_result_is_shown_as_it_is() -> None:
    assert _fields(call('{"a": 1}', characters=5_000)) == []
