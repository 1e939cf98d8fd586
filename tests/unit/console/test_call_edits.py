"""An edit of a tool call: a control for each argument, and the arguments that the controls make, in the types of the call."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from kneo.service.console.answer_form import _content, _edits
from kneo.service.console.page import Form

if TYPE_CHECKING:
    from kneo.api.task_views import HumanTaskView


def call(**arguments: object) -> dict[str, object]:
    return {"agent": "clerk", "tool": "pay", "arguments": arguments}


def content(facts: dict[str, object], *fields: tuple[str, str]) -> str:
    task = cast("HumanTaskView", SimpleNamespace(metadata={"facts": facts}))
    return _content(task, Form([("decision", "edited"), *fields]))


def test_each_plain_argument_has_a_control_with_its_value() -> None:
    found = _edits(call(to="Bolt Ltd", amount=120, rate=1.5, urgent=True, note="a\nb"), Form())
    assert [(each.name, each.kind, each.value) for each in found] == [
        ("to", "text", "Bolt Ltd"),
        ("amount", "number", "120"),
        ("rate", "number", "1.5"),
        ("urgent", "choice", "true"),
        ("note", "textarea", "a\nb"),
    ]


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, "x" * 2_001, "a\r\nb"])
def test_arguments_that_no_control_keeps_are_edited_as_one_text(value: object) -> None:
    assert _edits(call(amount=1, other=value), Form()) == []


def test_edited_arguments_keep_their_types() -> None:
    facts = call(to="007", amount=120, urgent=True)
    sent = ("arguments.to", "008"), ("arguments.amount", "100"), ("arguments.urgent", "false")
    assert json.loads(content(facts, *sent)) == {"to": "008", "amount": 100, "urgent": False}


def test_a_text_in_place_of_a_number_stays_one_for_the_schema_to_refuse() -> None:
    assert json.loads(content(call(amount=120), ("arguments.amount", "many"))) == {"amount": "many"}


def test_what_was_typed_is_shown_again() -> None:
    [control] = _edits(call(amount=120), Form([("arguments.amount", "1oo")]))
    assert control.value == "1oo"


def test_without_controls_the_written_text_counts() -> None:
    assert content(call(amount=[1]), ("content", '{"amount": [2]}')) == '{"amount": [2]}'
