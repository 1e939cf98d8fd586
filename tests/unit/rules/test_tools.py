"""Declarations of tools: their backing, their effects, and the rejections of their gates."""

from __future__ import annotations

import pytest

from kneo.spec.gates import rejection_effect
from kneo.spec.lint import check
from kneo.spec.models.spec import Tool
from kneo.spec.reading.load import load_tree

GET = {"url": "https://crm.example/{id}"}
POST = {"url": "https://crm.example", "method": "POST"}


def tool(**fields: object) -> Tool:
    return Tool.model_validate({"description": "A tool.", **fields})


@pytest.mark.parametrize(
    ("fields", "effects"),
    [
        ({}, False),
        ({"implementation": "acme.look"}, False),
        ({"capabilities": ["filesystem_read"]}, False),
        *(({"capabilities": [name]}, True) for name in ("filesystem_write", "shell", "privileged", "network")),
        *(({"capabilities": [name], "effects": False}, True) for name in ("filesystem_write", "shell", "privileged")),
        ({"capabilities": ["network"], "effects": False}, False),
        ({"http": GET}, False),
        ({"http": {**GET, "method": "HEAD"}}, False),
        ({"http": POST}, True),
        ({"http": POST, "effects": False}, False),
        ({"http": GET, "effects": True}, True),
        ({"effects": True}, True),
    ],
)
def test_effects_follow_from_capabilities_and_method(fields: dict[str, object], effects: bool) -> None:
    assert tool(**fields).has_effects is effects


def test_an_http_tool_uses_the_network_whatever_it_declares() -> None:
    assert tool(http=GET).all_capabilities == ("network",)
    assert tool(http=GET, capabilities=["privileged", "network"]).all_capabilities == ("privileged", "network")


def findings(**fields: object) -> dict[str, str | None]:
    humans = {"boss": {"on_reject": fields.pop("human_rejects", None)}} if "human_rejects" in fields else {"boss": {}}
    tree = {
        "agent": {"name": "root"},
        "tools": {"t": {"description": "A tool.", **fields}},
        "components": {"humans": humans},
    }
    return {found.code: found.path_text for found in load_tree(tree, rules=check).diagnostics}


@pytest.mark.parametrize("effect", ["tell_agent", "stop", "fail"])
def test_a_rejection_at_a_tool_tells_the_agent_or_ends_the_run(effect: str) -> None:
    gate = {"before": {"human": "boss", "on_reject": effect}}
    assert "E_REVIEW_REJECT" not in findings(implementation="acme.t", review=gate)


@pytest.mark.parametrize("effect", ["cancel", "skip", "retry", "else", "continue"])
@pytest.mark.parametrize("position", ["before", "external"])
def test_other_rejections_at_a_tool_are_refused(position: str, effect: str) -> None:
    gate = {position: {"human": "boss", "on_reject": effect}}
    assert findings(implementation="acme.t", review=gate)["E_REVIEW_REJECT"] == f"tools.t.review.{position}.on_reject"


def test_no_agent_receives_the_rejection_of_a_step() -> None:
    step = {"id": "s", "kind": "agent", "ref": "root", "review": {"before": {"on_reject": "tell_agent"}}}
    diagnostics = load_tree({"agent": {"name": "root"}, "workflow": [step]}, rules=check).diagnostics
    assert {found.code for found in diagnostics} == {"E_REVIEW_REJECT"}


@pytest.mark.parametrize("effect", ["skip", "continue", "cancel"])
def test_a_shared_human_whose_rejection_is_impossible_at_a_tool_is_reported(effect: str) -> None:
    found = findings(implementation="acme.t", review={"before": {"human": "boss"}}, human_rejects=effect)
    assert found["W_FIELD_NO_EFFECT"] is not None
    assert rejection_effect("tool", effect) == "stop"


def test_the_effect_of_a_rejection() -> None:
    assert [rejection_effect("tool", effect) for effect in (None, "tell_agent", "stop", "fail")] == [
        "tell_agent",
        "tell_agent",
        "stop",
        "fail",
    ]
    assert [rejection_effect("before", effect) for effect in (None, "tell_agent", "skip")] == ["stop", "stop", "skip"]


@pytest.mark.parametrize(
    "other", [{"http": GET}, {"mcp": {"server": "s"}}, {"agent": "a"}], ids=["http", "mcp", "agent"]
)
def test_a_tool_has_one_backing(other: dict[str, object]) -> None:
    assert "E_TOOL_MULTIPLE_BACKINGS" in findings(implementation="acme.t", **other)


def test_http_is_a_backing() -> None:
    assert not {"E_TOOL_MULTIPLE_BACKINGS", "E_TOOL_NO_BACKING"} & findings(http=GET).keys()
    assert "E_TOOL_NO_BACKING" in findings()
