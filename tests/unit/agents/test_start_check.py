"""The agents of a run are checked at its start, with those behind their tools and the libraries that they need."""

from __future__ import annotations

from typing import Any

import pytest

from kneo.agents.providers import OperatorConnections
from kneo.agents.start_check import check_agents
from kneo.errors import Invalid
from kneo.spec.models.spec import Spec
from kneo.spec.tool_kinds import TOOL_KINDS, Backing, Library

OPERATOR = OperatorConnections(secret={"OPENAI_API_KEY": "k"}.get)
DUMMY = {"provider": "dummy", "name": "dummy"}


def spec(*included: str, **behind: Any) -> Spec:
    return Spec.model_validate(
        {
            "agent": {"name": "root", "model": DUMMY, "tools": {"include": included, "exclude": ["unused"]}},
            "components": {"agents": {"writer": {"name": "writer", "model": DUMMY, **behind}}},
            "tools": {
                "crm": {"description": "Looks up.", "mcp": {"server": "crm"}},
                "unused": {"description": "Looks up.", "mcp": {"server": "crm"}},
                "paint": {"description": "Paints.", "a2a": {"url": "https://agents.example/painter"}},
                "write": {"description": "Writes.", "agent": "writer"},
            },
            "mcp_servers": {"crm": {"transport": "http", "url": "https://crm.example.org/mcp"}},
        }
    )


def library_of(backing: Backing) -> Library:
    library = TOOL_KINDS[backing].library
    assert library is not None
    return library


def check(checked: Spec, operator: OperatorConnections | None = OPERATOR, *, installed: bool = False) -> None:
    missing = frozenset() if installed else frozenset({library_of("mcp")})
    check_agents(checked, {"root": checked.agent}, operator, None, missing=lambda: missing)


@pytest.mark.parametrize(
    ("checked", "agent"),
    [(spec("crm"), "root"), (spec("write", tools={"include": ["crm"]}), "writer")],
    ids=["own tool", "behind a tool"],
)
def test_a_tool_of_an_mcp_server_needs_the_library(checked: Spec, agent: str) -> None:
    with pytest.raises(Invalid, match=f"The agent {agent} needs the tool crm") as caught:
        check(checked)
    assert caught.value.code == "mcp_not_installed"
    assert "pip install 'kneo[mcp]'" in str(caught.value.hint)
    check(checked, installed=True)
    check(checked, operator=None)  # another machine executes the run


def test_a_remote_agent_needs_the_library() -> None:
    checked = spec("paint")
    with pytest.raises(Invalid, match="The agent root needs the tool paint") as caught:
        check_agents(checked, {"root": checked.agent}, OPERATOR, None, missing=lambda: frozenset({library_of("a2a")}))
    assert caught.value.code == "a2a_not_installed"
    assert "pip install 'kneo[a2a]'" in str(caught.value.hint)
    check(checked)


def test_tools_that_no_agent_can_call_need_no_library() -> None:
    check(spec("unused"))
    check(spec())


def test_a_model_behind_a_tool_is_checked_too() -> None:
    with pytest.raises(Invalid, match="writer") as caught:
        check(spec("write", model={"provider": "openia", "name": "m"}))
    assert caught.value.code == "provider_not_configured"


def test_agents_that_call_each_other_are_checked_once() -> None:
    check(spec("write", tools={"include": ["write"]}))
