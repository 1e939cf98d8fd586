"""Titles of tool calls: short, and without a secret that was cut before anything could find it."""

from __future__ import annotations

import pytest

from kneo.spec.call_title import MAX_VALUE_CHARS, call_title

TOKEN = "ghp_" + "a1B2c3D4e5" * 4


@pytest.mark.parametrize("template", [None, "Send {text}"])
@pytest.mark.parametrize("text", [TOKEN, f"with the key {TOKEN} of the shop", f"{'long ' * 20}{TOKEN}"])
def test_a_secret_is_redacted_before_a_value_is_cut(template: str | None, text: str) -> None:
    assert "a1B2" not in call_title("send", template, {"text": text})
    assert "c3D4" not in call_title("send", template, {"text": text})


def test_other_long_values_show_their_beginning_and_end() -> None:
    title = call_title("send", "{text}", {"text": "first " + "x" * 100 + " last"})
    assert title.startswith("first ")
    assert title.endswith(" last")
    assert len(title) <= MAX_VALUE_CHARS


def test_a_person_is_shown_to_those_who_decide() -> None:
    address = "ann.of.the.long.department.name@example.com"
    assert call_title("send", "{to}", {"to": address}).startswith("ann.of")
