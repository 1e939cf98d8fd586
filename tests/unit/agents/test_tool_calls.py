"""One tool call of a caller that is no agent loop: opened, checked, asked about, made and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from agent_turns import House, decided, house, spec_of

from kneo.agents.tool_calls.calls import ToolCalls
from kneo.agents.turn import PeopleRequired, ToolCall, ToolGate, Turn, TurnResult
from kneo.clock import ManualClock
from kneo.records.conversation import EntryStatus
from kneo.records.task import Decision

GATES = {"pay": [ToolGate(id="finance", position="tool")]}
PROVIDED = {"pay": [ToolGate(id="finance", position="tool"), ToolGate(id="caller", position="external")]}


async def no_agents(_turn: Turn) -> TurnResult:
    raise AssertionError


def opened(made: House, answers: Mapping[str, Decision] | None = None) -> tuple[ToolCalls, ToolCall]:
    turn = replace(made.turn, answers=answers or {})
    calls = ToolCalls(turn, made.services, made.turn.spec.tools, nested=no_agents, entries=made.journal.load())
    return calls, calls.open("pay", {"x": 20}, key="1.call", number=1)


def taken(made: House, answers: Mapping[str, Decision] | None = None) -> ToolCall:
    calls, call = opened(made, answers)
    return asyncio.run(calls.take(call))


def question_of(made: House, answers: Mapping[str, Decision] | None = None) -> str:
    with pytest.raises(PeopleRequired) as required:
        taken(made, answers)
    [question] = required.value.questions
    return question.key


def test_a_call_is_made_once_with_the_arguments_that_a_person_edited(clock: ManualClock) -> None:
    made = house(gates=GATES, functions={"pay": lambda call: {"paid": call.arguments["x"]}}, clock=clock)
    answers = {question_of(made): decided("edited", data={"x": 7})}
    for _ in range(2):
        call = taken(made, answers)
        assert (call.status, call.outcome, call.result) == (EntryStatus.DONE, "success", {"paid": 7})
    [backend_call] = made.backend.calls
    assert (backend_call.arguments, backend_call.original) == ({"x": 7}, {"x": 20})
    assert backend_call.idempotency_key == "run_1:answer~0:1.call"
    entry = made.journal.rows["answer~0", "tool:1.call"]
    assert entry.body == {"arguments": {"x": 7}, "result": {"paid": 7}}
    assert entry.facts == {
        "tool": "pay",
        "edited_by": "ann",
        "decisions": [{"by": "ann", "decision": "edited"}],
    }


@pytest.mark.parametrize("field", ["comment", "content", "feedback"])
def test_a_call_that_a_person_rejects_is_denied_and_not_made(field: str, clock: ManualClock) -> None:
    made = house(gates=GATES, clock=clock)
    call = taken(made, {question_of(made): decided("rejected", **{field: "Too much"})})
    assert (call.outcome, call.result) == (
        "denied",
        {"rejected": "A person rejected this call: Too much. This is final."},
    )
    assert made.backend.calls == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pay", {"x": "much"}, "$.x: 'much' is not of type 'integer'"),
        ("refund", {}, "There is no tool 'refund'. Tools: look, pay."),
    ],
)
def test_a_call_that_cannot_be_made_as_requested_has_failed(
    clock: ManualClock, name: str, arguments: Mapping[str, object], message: str
) -> None:
    made = house(clock=clock)
    calls, _ = opened(made)
    call = asyncio.run(calls.take(calls.open(name, arguments, key="1.call")))
    assert (call.outcome, call.result) == ("failed", {"error": "invalid_arguments", "message": message})


def test_a_caller_that_makes_the_call_itself_begins_and_records_it(clock: ManualClock) -> None:
    made = house(clock=clock)
    calls, call = opened(made)

    async def made_outside() -> ToolCall:
        begun = await calls.begin(await calls.ask(await calls.check(call)))
        assert begun.status is EntryStatus.BEGUN
        assert opened(made)[1].status is EntryStatus.BEGUN
        return await calls.record(begun, {"paid": 20})

    assert asyncio.run(made_outside()).result == {"paid": 20}
    assert made.backend.calls == []
    assert taken(made).result == {"paid": 20}
    assert made.journal.log == ["tool:1.call begun durable", "tool:1.call done durable"]


def test_a_person_provides_the_result_of_a_call_after_it_was_approved(clock: ManualClock) -> None:
    made = house(gates=PROVIDED, clock=clock)
    answers = {question_of(made): decided("approved")}
    answers[question_of(made, answers)] = decided("provided", data={"paid": 20})
    assert taken(made, answers).result == {"paid": 20}
    assert made.backend.calls == []


def test_guardrails_of_the_agent_check_the_result_of_every_call(clock: ManualClock) -> None:
    rules = {"tool": [{"id": "ids", "type": "regex", "action": "redact", "config": {"patterns": ["[0-9]{4}"]}}]}
    made = house(
        spec=spec_of(agent={"guardrails": rules}), functions={"pay": lambda _call: "receipt 1234"}, clock=clock
    )
    assert "1234" not in str(taken(made).result)
