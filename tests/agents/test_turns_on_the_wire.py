"""Whole turns with the real libraries of providers, in each wire format, plain and streamed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from agent_turns import LOOK, PAY, House, decided, house, spec_of
from model_server import FORMATS, Call, Format, ModelServer, Reply, model_server
from model_turns import KEY, PROVIDERS, variables

from kneo.agents.providers import OperatorConnections
from kneo.agents.requests import ModelServices
from kneo.agents.turn import PeopleRequired, ToolGate, TurnResult
from kneo.clock import ManualClock
from kneo.records.task import Decision

GATES = {"pay": [ToolGate(id="before", position="tool")]}


class Reader:
    """Reads the deltas of a turn, so that its requests are streamed."""

    def is_read(self) -> bool:
        return True

    def write(self, request: int, offset: int, text: str) -> None: ...

    def end(self, request: int) -> None: ...


def made_on(server: ModelServer, wire: Format, clock: ManualClock, *, streamed: bool = False, **agent: object) -> House:
    tools = {"look": {**LOOK, "output": "untrusted"}, "pay": PAY}
    spec = spec_of(agent={"model": {"name": "m", **PROVIDERS[wire]}, **agent}, tools=tools)
    made = house(spec=spec, gates=GATES, clock=clock)
    made.turn = replace(made.turn, deltas=Reader() if streamed else None)
    return made


async def take(made: House, server: ModelServer, answers: dict[str, Decision] | None = None) -> TurnResult:
    """Enter a turn as another process does: with clients of its own."""
    models = ModelServices(operator=OperatorConnections(secret=variables(server).get))
    made.services = replace(made.services, models=models)
    try:
        return await made.take(answers)
    finally:
        await models.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("wire", FORMATS)
def test_a_turn_plans_calls_pauses_and_answers_in_json(wire: Format, streamed: bool, clock: ManualClock) -> None:
    script = [
        Reply("1. Look. 2. Pay."),
        Reply("Looking.", calls=[Call("look", {"x": 1}), Call("pay", {"x": "six"}), Call("pay", {"x": 5})]),
        Reply(calls=[Call("final_result", {"verdict": "maybe"})]),
        Reply(calls=[Call("final_result", {"verdict": "yes"})]),
    ]
    schema = {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    with model_server(script) as server:
        made = made_on(
            server, wire, clock, streamed=streamed, strategy="plan-act", output_schema=schema, system_prompt="Be kind."
        )
        with pytest.raises(PeopleRequired) as paused:
            asyncio.run(take(made, server))
        [question] = paused.value.questions
        result = asyncio.run(take(made, server, {question.key: decided("edited", content='{"x": 6}')}))

    assert result.text == '{"verdict":"yes"}'
    assert result.metadata == {"verdict": "yes"}
    assert result.facts == {"model_requests": 4, "tool_calls": 3, "total_tokens": 60}
    assert [(call.name, call.arguments) for call in made.backend.calls] == [("look", {"x": 1}), ("pay", {"x": 6})]
    assert all(request.streamed is streamed for request in server.requests)
    planning, acting, answering, again = server.requests
    assert all("Be kind." in request.text for request in server.requests)
    assert "tools" not in planning.body
    assert "Plan:" in acting.text
    for shown in ("untrusted-", "'six' is not of type", 'pay {\\"x\\": 6}'):
        assert shown in answering.text, shown
    assert "'maybe' is not one of" in again.text
    assert KEY not in str(made.journal.rows) + str(made.journal.trace)


@pytest.mark.parametrize("wire", FORMATS)
def test_a_simple_agent_answers_in_the_json_mode_of_its_provider(wire: Format, clock: ManualClock) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    with model_server([Reply('{"n": 3}')]) as server:
        made = made_on(server, wire, clock, strategy="simple", output_schema=schema)
        assert asyncio.run(take(made, server)).text == '{"n":3}'
    [request] = server.requests
    assert '"integer"' in request.text or "INTEGER" in request.text


@pytest.mark.parametrize("wire", FORMATS)
def test_the_setting_of_parallel_calls_reaches_the_wire_where_it_has_one(wire: Format, clock: ManualClock) -> None:
    with model_server([Reply("Done.")]) as server:
        strategy = {"type": "react", "parallel_tool_calls": False}
        asyncio.run(take(made_on(server, wire, clock, strategy=strategy), server))
    [request] = server.requests
    body = request.body
    match wire:
        case "chat" | "responses":
            assert body["parallel_tool_calls"] is False
        case "anthropic":
            assert body["tool_choice"]["disable_parallel_tool_use"] is True
        case "gemini":
            assert "parallel" not in request.text  # it has no such setting; calls run one after the other all the same
