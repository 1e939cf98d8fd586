"""A turn whose process ends before or after any write of its journal, and that is entered again, ends as if it had not."""

from __future__ import annotations

import asyncio

import pytest
from agent_turns import NEVER, House, Interrupted, decided, house, scripted_model, spec_of

from kneo.agents.turn import AnswerRequired, CallQuestion, PeopleRequired, ToolCall, ToolGate
from kneo.clock import ManualClock
from kneo.records.task import Decision

POINTS = 40
"""The points before and after each write of the turn below, and some more."""


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


def books(call: ToolCall) -> object:
    """Book after one question."""
    if call.answer is None:
        raise AnswerRequired("Where?", {"type": "object"}, {"place": "unknown"})
    return f"booked {call.answer.content}"


def everything(clock: ManualClock, effects: list[str]) -> House:
    """Return a turn with a read-only call, a gated effect, a question, a tool that asks, and an agent behind a tool."""

    def pays(call: ToolCall) -> object:
        effects.append(call.idempotency_key)
        return f"paid {call.arguments['x']}"

    tools = {
        "look": {"description": "Look.", "implementation": "b.look"},
        "pay": {"description": "Pay.", "implementation": "b.pay", "capabilities": ["privileged"]},
        "book": {"description": "Book.", "implementation": "b.book", "effects": True},
        "helper": {"description": "Help.", "agent": "helper"},
    }
    helper = {
        "name": "helper",
        "model": {"provider": "openai", "name": "m"},
        "strategy": "plan-act",
        "tools": {"include": ["pay"]},
    }
    included = ["look", "pay", "book", "helper", "ask_question"]
    return house(
        [("look", {}), ("pay", {"x": 5}), ("ask_question", {"question": "Which?"}), ("book", {})],
        [("helper", {"input": "Pay again."}), ("look", {})],
        "Done.",
        spec=spec_of(agent={"tools": {"include": included}}, components={"agents": {"helper": helper}}, tools=tools),
        gates={"pay": [ToolGate(id="before", position="tool")]},
        functions={"pay": pays, "book": books},
        others={"helper": ["1. Pay.", [("pay", {"x": 7})], "Helped."]},
        clock=clock,
    )


def answer(question: CallQuestion, effects: list[str]) -> Decision:
    """Answer as a person does who looks where the effects happen."""
    match question.kind:
        case "approval":
            return decided("edited", content='{"x": 6}') if question.arguments["x"] == 5 else decided("approved")
        case "interrupted":
            happened = question.facts["idempotency_key"] in effects
            return decided("selected", selected_option="done" if happened else "repeat")
        case _:
            return decided("provided", content="Oslo")


async def finish(made: House, effects: list[str]) -> str:
    """Take a turn to its end, through every interruption; answer one question at a time."""
    answers: dict[str, Decision] = {}
    for _ in range(100):
        try:
            result = await made.take(answers)
        except PeopleRequired as required:
            answers = {required.questions[0].key: answer(required.questions[0], effects)}
        except Interrupted:
            answers = {}
        else:
            return result.text
    raise AssertionError


def run(clock: ManualClock, interruption: int = NEVER, *, loses_power: bool = False) -> tuple[House, list[str]]:
    effects: list[str] = []
    made = everything(clock, effects)
    made.journal.interruptions[0], made.journal.loses_power = interruption, loses_power
    assert asyncio.run(finish(made, effects)) == "Done."
    return made, effects


def test_a_turn_that_is_not_interrupted_asks_once_and_calls_once(clock: ManualClock) -> None:
    made, effects = run(clock)
    assert len(effects) == 2
    assert sorted(made.backend.names()) == ["book", "book", "look", "look", "pay", "pay"]
    assert len(made.script.requests) == 6
    assert NEVER - made.journal.interruptions[0] <= POINTS, "an interruption at each write is tested below"


@pytest.mark.parametrize("interruption", range(POINTS))
def test_an_interruption_anywhere_repeats_no_finished_call(interruption: int, clock: ManualClock) -> None:
    plain, _ = run(ManualClock(clock.now()))

    made, effects = run(clock, interruption)

    # Each gated effect happened exactly once, and the model was asked at most once more.
    assert len(effects) == len(set(effects)) == 2
    assert len(made.script.requests) <= len(plain.script.requests) + 1
    # A call without effects is repeated only where its result was not written yet.
    assert made.backend.names().count("look") <= plain.backend.names().count("look") + 1
    assert statuses(made) == statuses(plain)


@pytest.mark.parametrize("interruption", range(POINTS))
def test_a_machine_that_loses_its_power_anywhere_repeats_no_effect(interruption: int, clock: ManualClock) -> None:
    plain, _ = run(ManualClock(clock.now()))

    made, effects = run(clock, interruption, loses_power=True)

    assert len(effects) == len(set(effects)) == 2
    assert statuses(made) == statuses(plain)


def statuses(made: House) -> dict[tuple[str, str], str]:
    """Return the entries of all conversations with their status."""
    return {key: str(entry.status) for key, entry in made.journal.rows.items()}
