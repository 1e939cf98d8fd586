"""Skills of agents: their part of the system prompt, and the built-in tool that reads them."""

from __future__ import annotations

import asyncio

import pytest
from agent_turns import House, house, scripted_model, spec_of
from rules_now import always

from kneo.agents.turn import ToolGate
from kneo.clock import ManualClock
from kneo.errors import Invalid
from kneo.settings import AgentSettings
from kneo.spec.policy import ToolRules

LONG = "Check the order. " * 400

SKILLS = {
    "brief": {"content": "Be brief.", "description": "How to write.", "tools": ["look"]},
    "refunds": {
        "content": LONG,
        "description": "How to refund.",
        "resources": {"limits.md": "At most 20 EUR.", "references/law.md": "The law."},
    },
}


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


def skilled(*replies: object, clock: ManualClock, skills: list[str], strategy: str = "react", **more) -> House:
    agent = {"system_prompt": "You help.", "skills": skills, "strategy": {"type": strategy}, **more.pop("agent", {})}
    return house(*replies, spec=spec_of(agent=agent, skills=SKILLS), clock=clock, **more)


def prompt_of(made: House, request: int = 0) -> str:
    parts = made.script.requests[request][2].model_request_parameters.instruction_parts or []
    return "\n\n".join(part.content for part in parts)


def offered(made: House) -> list[str]:
    return [tool.name for tool in made.script.requests[0][2].function_tools]


def test_short_content_is_in_the_prompt_and_needs_no_tool(clock: ManualClock) -> None:
    made = skilled("Done.", clock=clock, skills=["brief"])
    asyncio.run(made.take())
    assert prompt_of(made) == "You help.\n\n# Skills\n\n## brief\n\nHow to write.\n\nTools: look.\n\nBe brief."
    assert offered(made) == ["look", "pay"]


def test_long_content_and_resources_are_read_and_the_calls_are_in_the_journal(clock: ManualClock) -> None:
    calls = [
        ("read_skill", {"name": "refunds"}),
        ("read_skill", {"name": "refunds", "resource": "references/law.md"}),
        ("read_skill", {"name": "refunds", "resource": "../../etc/passwd"}),
    ]
    made = skilled(calls, "Done.", clock=clock, skills=["refunds"])

    assert asyncio.run(made.take()).facts["tool_calls"] == 3

    assert LONG not in prompt_of(made)
    assert "## refunds\n\nHow to refund.\n\nRead these instructions with read_skill" in prompt_of(made)
    assert "limits.md, references/law.md" in prompt_of(made)
    assert offered(made) == ["look", "pay", "read_skill"]
    results = made.script.results()
    assert (results["c0"], results["c1"]) == (LONG, "The law.")
    assert results["c2"].startswith("not_found: The skill refunds has no resource '../../etc/passwd'.")
    assert made.journal.log == [
        "model:1 done",
        "tool:1.c0 done",
        "tool:1.c1 done",
        "tool:1.c2 failed",
        "model:2 done",
    ]
    assert made.events() == ["tool_call_completed", "tool_call_completed", "tool_call_failed"]
    assert made.backend.calls == []


def test_only_the_agents_own_skills_are_read(clock: ManualClock) -> None:
    made = skilled([("read_skill", {"name": "brief"})], "Done.", clock=clock, skills=["refunds"])
    asyncio.run(made.take())
    assert "is not one of ['refunds']" in made.script.results()["c0"]


def test_gates_do_not_stand_before_a_skill_and_an_environment_can_deny_it(clock: ManualClock) -> None:
    gate = ToolGate(id="all", position="tool")
    made = skilled(
        [("read_skill", {"name": "refunds"})],
        "Done.",
        clock=clock,
        skills=["refunds"],
        gates={"read_skill": [gate]},
        rules=always(ToolRules(allow=("look",))),
    )
    asyncio.run(made.take())
    assert made.script.results()["c0"] == LONG

    denied = skilled(
        [("read_skill", {"name": "refunds"})],
        "Done.",
        clock=clock,
        skills=["refunds"],
        rules=always(ToolRules(deny=("read_*",))),
    )
    asyncio.run(denied.take())
    assert "denies the tool read_skill" in denied.script.results()["c0"]["denied"]


def test_what_is_read_is_bounded(clock: ManualClock) -> None:
    made = skilled(
        [("read_skill", {"name": "refunds"})],
        "Done.",
        clock=clock,
        skills=["refunds"],
        limits=AgentSettings(result_chars=100),
    )
    asyncio.run(made.take())
    assert made.script.results()["c0"] == f"{LONG[:100]}\n[cut: {len(LONG)} characters in all]"


def test_an_agent_that_calls_no_tools_has_everything_in_its_prompt(clock: ManualClock) -> None:
    made = skilled("Done.", clock=clock, skills=["refunds"], strategy="simple")
    asyncio.run(made.take())
    assert LONG.strip() in prompt_of(made)
    assert "### references/law.md\n\nThe law." in prompt_of(made)
    assert "read_skill" not in prompt_of(made)


def test_a_skill_whose_source_was_not_inlined_is_refused(clock: ManualClock) -> None:
    spec = spec_of(agent={"skills": ["gone"]}, skills={"gone": {"source": "skills/gone"}})
    with pytest.raises(Invalid, match="has the skill gone, whose content is not in the spec") as error:
        asyncio.run(house("Done.", spec=spec, clock=clock).take())
    assert error.value.code == "spec_invalid"


def test_a_registered_tool_cannot_stand_in_for_reading_skills(clock: ManualClock) -> None:
    tool = spec_of().tools["look"]
    made = skilled(
        "Done.",
        clock=clock,
        skills=["refunds"],
        agent={"tools": {"include": ["read_skill"]}},
        registered=lambda name: tool if name == "read_skill" else None,
    )
    with pytest.raises(Invalid, match="several tools that a model knows as read_skill"):
        asyncio.run(made.take())
