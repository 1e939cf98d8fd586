"""Middleware around the tool calls of agents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from agent_turns import Backend, House, house, scripted_model, spec_of

from kneo.agents.tools.middleware import MiddlewareTools
from kneo.agents.turn import AnswerRequired, PeopleRequired, ToolCall, ToolGate
from kneo.clock import ManualClock
from kneo.errors import Conflict, Invalid
from kneo.spec.lint import check
from kneo.spec.modules import RuleContext
from kneo.spec.reading.load import load_tree
from kneo.tools import CallNext, Middleware, TakeNext, ToolContext, ToolRegistry, TurnContext, TurnMiddleware


def called(backend: Backend, clock: ManualClock, **middleware: Middleware) -> object:
    spec = spec_of(agent={"middleware": list(middleware)})
    turn = house("Done.", spec=spec, clock=clock).turn
    call = ToolCall(key="1.c1", name="look", tool=spec.tools["look"], arguments={"x": 1}, turn=turn)
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
    names = of_guide(".use(")
    for _ in range(20):
        called(Backend(), clock, **names["registry"].middleware)
    with pytest.raises(RuntimeError, match="20 calls"):
        called(Backend(), clock, **names["registry"].middleware)


def of_guide(part: str) -> dict[str, ToolRegistry]:
    page = (Path(__file__).parents[3] / "docs" / "guides" / "python" / "embed.md").read_text()
    [code] = [each for each in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if part in each]
    names: dict[str, ToolRegistry] = {}
    exec(code, names)
    return names


def with_turns(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, **middleware: TurnMiddleware) -> House:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)
    made = house([("look", {})], "Done.", spec=spec_of(agent={"middleware": list(middleware)}), clock=clock)
    made.services = replace(made.services, turn_middleware=middleware)
    return made


def noting(name: str, log: list[str]) -> TurnMiddleware:
    async def noted(context: TurnContext, call_next: TakeNext) -> None:
        log.append(f"{name} begins {context.agent}")
        log.append(f"{name} ends: {await call_next()}")

    return noted


def test_middleware_stands_around_a_turn(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    made = with_turns(clock, monkeypatch, a=noting("a", log), b=noting("b", log))
    assert asyncio.run(made.take()).text == "Done."
    assert log == ["a begins root", "b begins root", "b ends: Done.", "a ends: Done."]


def test_a_middleware_refuses_a_turn_before_the_model_is_asked(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(context: TurnContext, _next: TakeNext) -> None:
        msg = f"{context.agent} is closed"
        raise RuntimeError(msg)

    made = with_turns(clock, monkeypatch, closed=closed)
    with pytest.raises(RuntimeError, match="root is closed"):
        asyncio.run(made.take())
    assert made.script.requests == []


def test_a_middleware_that_takes_no_turn_fails_the_step(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def absent(_context: TurnContext, _next: TakeNext) -> None:
        return

    with pytest.raises(Invalid, match="returned without the agent's answer") as refused:
        asyncio.run(with_turns(clock, monkeypatch, absent=absent).take())
    assert refused.value.code == "middleware_failed"


def test_a_turn_is_taken_once(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(_context: TurnContext, call_next: TakeNext) -> None:
        await call_next()
        await call_next()

    with pytest.raises(RuntimeError, match="a second time"):
        asyncio.run(with_turns(clock, monkeypatch, twice=twice).take())


def test_a_turn_that_waits_for_a_person_waits_whatever_the_middleware_catches(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def caught(_context: TurnContext, call_next: TakeNext) -> None:
        with contextlib.suppress(BaseException):
            await call_next()

    made = with_turns(clock, monkeypatch, caught=caught)
    made.turn = replace(made.turn, gates=lambda _agent, _tool, _arguments: [ToolGate(id="g", position="tool")])
    with pytest.raises(PeopleRequired):
        asyncio.run(made.take())
    assert made.backend.calls == []


def test_the_middleware_of_the_guide_measures_turns(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = with_turns(clock, monkeypatch, **of_guide("use_around_turns(")["registry"].turn_middleware)
    with caplog.at_level(logging.INFO):
        asyncio.run(made.take())
    assert "root of run_1: 5 characters in" in caplog.text


def test_lint_knows_the_names_of_registered_middleware() -> None:
    async def timed(_context: TurnContext, call_next: TakeNext) -> None:
        await call_next()

    registry = ToolRegistry()
    registry.use("a", marking("a"))
    registry.use_around_turns("timed", timed)
    with pytest.raises(Conflict):
        registry.use_around_turns("a", timed)
    tree = {"version": "v1", "agent": {"name": "root", "middleware": ["a", "timed", "tmied"]}}

    def found(known: frozenset[str] | None) -> list[tuple[str, str | None]]:
        loaded = load_tree(tree, rules=check, context=RuleContext(middleware=known))
        return [(each.code, each.path_text) for each in loaded.diagnostics if "MIDDLEWARE" in each.code]

    assert found(registry.middleware_names) == [("W_MIDDLEWARE_UNKNOWN", "agent.middleware[2]")]
    assert found(None) == []
