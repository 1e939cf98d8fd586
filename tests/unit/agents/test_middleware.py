"""Middleware around the tool calls of agents."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from agent_turns import Backend, house, spec_of

from kneo.agents.turn import AnswerRequired, ToolCall
from kneo.clock import ManualClock
from kneo.errors import Conflict, Invalid
from kneo.runtime.steps.middleware import MiddlewareTools
from kneo.tools import CallNext, Middleware, ToolContext, ToolRegistry


def called(backend: Backend, clock: ManualClock, **middleware: Middleware) -> object:
    spec = spec_of(agent={"middleware": list(middleware)})
    turn = house("Done.", spec=spec, clock=clock).turn
    call = ToolCall(name="look", tool=spec.tools["look"], arguments={"x": 1}, idempotency_key="k", turn=turn)
    return asyncio.run(MiddlewareTools(backend, middleware).call(call))


def marking(name: str) -> Middleware:
    async def marked(_context: ToolContext, arguments: Mapping[str, object], call_next: CallNext) -> object:
        assert isinstance(arguments, dict)
        arguments["x"] = 99
        return f"{name}({await call_next()})"

    return marked


def test_the_first_is_outermost_and_none_changes_the_arguments(clock: ManualClock) -> None:
    backend = Backend()
    assert called(backend, clock, a=marking("a"), b=marking("b")) == 'a(b(look {"x": 1}))'
    assert [dict(call.arguments) for call in backend.calls] == [{"x": 1}]


def test_a_middleware_can_refuse_a_call(clock: ManualClock) -> None:
    async def refused(context: ToolContext, _arguments: Mapping[str, object], _next: CallNext) -> object:
        msg = f"{context.agent} calls {context.tool} too often"
        raise RuntimeError(msg)

    backend = Backend()
    with pytest.raises(RuntimeError, match="root calls look too often"):
        called(backend, clock, limits=refused)
    assert backend.calls == []


def test_a_call_is_made_once(clock: ManualClock) -> None:
    async def again(_context: ToolContext, _arguments: Mapping[str, object], call_next: CallNext) -> object:
        await call_next()
        return await call_next()

    backend = Backend()
    with pytest.raises(RuntimeError, match="a second time"):
        called(backend, clock, again=again)
    assert len(backend.calls) == 1


def test_a_question_of_a_tool_passes_a_middleware_that_catches_errors(clock: ManualClock) -> None:
    async def caught(_context: ToolContext, _arguments: Mapping[str, object], call_next: CallNext) -> object:
        try:
            return await call_next()
        except Exception:  # noqa: BLE001 - what a careless program does
            return "nothing"

    def asks(_call: ToolCall) -> object:
        raise AnswerRequired("Which one?", {}, {})

    with pytest.raises(AnswerRequired):
        called(Backend({"look": asks}), clock, caught=caught)


def test_only_asynchronous_functions_of_different_names_are_registered() -> None:
    registry = ToolRegistry()
    registry.use("a", marking("a"))
    with pytest.raises(Conflict):
        registry.use("a", marking("a"))
    with pytest.raises(Invalid, match="not an asynchronous function"):
        registry.use("b", lambda _context, _arguments, call_next: call_next())
    with pytest.raises(Invalid, match="not a name"):
        registry.use("a b", marking("a"))


def test_an_object_that_is_called_is_a_middleware(clock: ManualClock) -> None:
    class Counting:
        calls = 0

        async def __call__(
            self, _context: ToolContext, _arguments: Mapping[str, object], call_next: CallNext
        ) -> object:
            self.calls += 1
            return await call_next()

    counting, registry = Counting(), ToolRegistry()
    registry.use("count", counting)
    assert called(Backend(), clock, **registry.middleware) == 'look {"x": 1}'
    assert counting.calls == 1


def test_the_middleware_of_the_guide_limits_calls(clock: ManualClock) -> None:
    page = (Path(__file__).parents[3] / "docs" / "guides" / "python" / "embed.md").read_text()
    [code] = [each for each in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if ".use(" in each]
    names: dict[str, ToolRegistry] = {}
    exec(code, names)
    for _ in range(20):
        called(Backend(), clock, **names["registry"].middleware)
    with pytest.raises(RuntimeError, match="20 calls"):
        called(Backend(), clock, **names["registry"].middleware)
