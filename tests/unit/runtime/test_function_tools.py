"""Functions with named parameters as tools, and the decorator that declares who is asked about their calls."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from engine import level_sandboxes
from pydantic import BaseModel, Field
from tool_calls import KEY, tool_call

from kneo.agents.tools.python import PythonTools
from kneo.errors import Conflict, Forbidden
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.tool_functions import ToolFunctions
from kneo.sdk.tools import tool
from kneo.spec.models.human import Review
from kneo.spec.models.spec import Tool
from kneo.tools import FunctionTool, ToolContext, ToolRegistry


class Address(BaseModel):
    street: str


@tool
def send_money(amount: int, to: str, note: str | None = None, *, key: str, context: ToolContext) -> list[object]:
    """Send money."""
    return [amount, to, note, key, context.tool]


def called(registered: FunctionTool, arguments: dict[str, object], **declared: object) -> Any:
    registry = ToolRegistry()
    registry.add(registered)
    code = CodeLoader((), ())
    tools = PythonTools(ToolFunctions(code, level_sandboxes(code)), registry)
    return asyncio.run(tools.call(tool_call(arguments, name=registered.definition.name, **declared)))


def test_the_parameters_of_a_function_are_the_arguments_of_its_tool() -> None:
    assert send_money.definition.name == "send_money"
    assert send_money.definition.description == "Send money."
    schema = send_money.definition.parameters
    assert schema["required"] == ["amount", "to"]
    assert set(schema["properties"]) == {"amount", "to", "note"}
    assert schema["additionalProperties"] is False
    assert called(send_money, {"amount": 5, "to": "bob"}) == [5, "bob", None, KEY, "send_money"]
    context = ToolContext(run_id="r", step_id="s", agent="a", tool="t", idempotency_key="k")
    assert send_money(1, "bob", key="k", context=context) == [1, "bob", None, "k", "t"]


def test_arguments_are_converted_to_the_types_of_the_parameters() -> None:
    @tool(name="plan", description="Plan.")
    async def plan_trip(day: date, address: Address, mode: Annotated[str, Field(description="How.")] = "train") -> str:
        assert isinstance(day, date)
        return f"{day:%A} {address.street} {mode}"

    assert (plan_trip.definition.name, plan_trip.definition.description) == ("plan", "Plan.")
    assert (
        called(plan_trip, {"day": "2026-01-31", "address": {"street": "High Street"}}) == "Saturday High Street train"
    )
    for wrong in ({}, {"day": "soon", "address": {"street": "x"}}, {"day": "2026-01-31", "address": {}, "other": 1}):
        with pytest.raises(ValueError, match="plan_trip"):
            called(plan_trip, wrong)


@pytest.mark.parametrize(
    ("parameters", "places"),
    [
        ({"requires_confirmation": True}, ["before"]),
        ({"requires_user_input": True}, ["before"]),
        ({"user_input_fields": ["to"]}, ["before"]),
        ({"external_execution": True}, ["external"]),
        ({"requires_confirmation": True, "on_reject": "stop"}, ["before"]),
        ({}, []),
    ],
)
def test_pauses_become_the_review_of_a_tool(parameters: dict[str, Any], places: list[str]) -> None:
    @tool(**parameters)
    def pay(amount: int, to: Literal["ann", "bob"] = "ann") -> str:
        return f"{amount} {to}"

    assert list(pay.review) == places
    if places:
        review = Review.model_validate(pay.review)
        Tool.model_validate({"description": "Pay.", "review": pay.review})
        assert review.gates()[places[0]].on_reject == parameters.get("on_reject", "tell_agent")


def test_a_person_fills_in_fields_in_place_of_the_model() -> None:
    @tool(user_input_fields=["to", "day"])
    def send(amount: int, to: Literal["ann", "bob"], day: date | None = None) -> str:
        return f"{amount} {to} {day}"

    assert send.review["before"]["fields"] == [
        {"name": "to", "required": True, "type": "str", "allowed_values": ["ann", "bob"]},
        {"name": "day", "required": False, "type": "date"},
    ]
    assert send.definition.parameters["required"] == ["amount"]

    @tool(requires_user_input=True)
    def all_of(amount: int, tags: list[str]) -> str:
        return f"{amount} {tags}"

    assert [(field["name"], field["type"]) for field in all_of.review["before"]["fields"]] == [
        ("amount", "int"),
        ("tags", "list"),
    ]
    assert "required" not in all_of.definition.parameters


def test_what_cannot_be_a_tool_is_refused_where_it_is_declared() -> None:
    with pytest.raises(ValueError, match="one of"):
        tool(requires_confirmation=True, external_execution=True)
    with pytest.raises(ValueError, match="no parameter other"):
        tool(user_input_fields=["other"])(send_money.function)
    with pytest.raises(ValueError, match="cannot fill in the parameter address"):

        @tool(requires_user_input=True)
        def move(address: Address) -> str:
            return address.street

    with pytest.raises(TypeError, match="cannot be passed by its name"):

        @tool
        def many(*numbers: int) -> int:
            return sum(numbers)

    registry = ToolRegistry()
    registry.add(send_money)
    with pytest.raises(Conflict):
        registry.add(send_money)


@pytest.mark.parametrize("parameters", [{"requires_confirmation": True}, {"external_execution": True}])
def test_a_function_that_requires_a_person_is_not_called_without_the_gate(parameters: dict[str, Any]) -> None:
    calls = []

    @tool(**parameters)
    def pay(amount: int) -> str:
        calls.append(amount)
        return "paid"

    with pytest.raises(Forbidden) as refused:
        called(pay, {"amount": 1})
    assert refused.value.code == "tool_review_missing"
    assert calls == []
    assert called(pay, {"amount": 1}, review=pay.review) == "paid"


def test_a_program_calls_a_function_tool_by_its_name() -> None:
    registry = ToolRegistry()

    @tool
    async def later(amount: int = 2) -> str:
        return f"{amount}"

    registry.add(later)
    assert registry.call("later", {}).output == "2"
    assert registry.call("later", {"amount": 3}).output == "3"
