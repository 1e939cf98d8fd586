"""Spans of agents by OpenTelemetry's conventions for generative AI, in the SDK's own exporter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from agent_turns import decided, house, scripted_model, spec_of
from model_server import FORMATS, Format, Reply, model_server, overloaded
from model_turns import KEY, PROVIDERS, Conversation, Listener
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from kneo import telemetry as spans
from kneo.agents.turn import PeopleRequired, ToolGate
from kneo.clock import ManualClock
from kneo.settings import Tracing

SECRET = "password=hunter22"

Record = Callable[..., InMemorySpanExporter]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    def started(**switches: bool) -> InMemorySpanExporter:
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(spans._state, "tracer", provider.get_tracer("kneo"))
        monkeypatch.setattr(spans._state, "tracing", Tracing(enabled=True, **switches))
        return exporter

    return started


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [each for each in exporter.get_finished_spans() if each.name == name]


def facts(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def everything(exporter: InMemorySpanExporter) -> str:
    return " ".join(each.to_json() for each in exporter.get_finished_spans())


# ---- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("wire", FORMATS)
def test_each_request_has_a_span_with_model_and_tokens(wire: Format, streamed: bool, record: Record) -> None:
    exporter = record()
    with model_server([[overloaded(0.01), Reply("My secret answer.", usage=(20, 8))]]) as server:
        model = {**PROVIDERS[wire], "max_tokens": 77, "temperature": 0.5}
        conversation = Conversation(server, model, deltas=Listener() if streamed else None)
        asyncio.run(conversation.ask("My secret question."))
        port = server.port
    refused, replied = named(exporter, "chat fake")
    assert (refused.status.status_code, facts(refused)["error.type"]) == (StatusCode.ERROR, "status 429")
    assert (replied.kind, replied.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    provider = {"anthropic": "anthropic", "gemini": "gcp.gemini"}.get(wire, "openai")
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": "fake",
        "gen_ai.request.max_tokens": 77,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.agent.name": "clerk",
        "gen_ai.conversation.id": "run_1:answer~0",
        "server.address": "127.0.0.1",
        "server.port": port,
        "kneo.run_id": "run_1",
        "kneo.step_id": "answer",
    }.items() <= facts(replied).items()
    for secret in ("secret question", "secret answer", KEY):
        assert secret not in everything(exporter)


def test_messages_are_recorded_only_where_that_is_switched_on_without_secrets(record: Record) -> None:
    exporter = record(record_arguments=True, record_results=True)
    with model_server([Reply(f"Your {SECRET}.")]) as server:
        asyncio.run(Conversation(server, PROVIDERS["chat"]).ask(f"What is {SECRET}?"))
    (span,) = named(exporter, "chat fake")
    [asked] = json.loads(facts(span)["gen_ai.input.messages"])
    [answered] = json.loads(facts(span)["gen_ai.output.messages"])
    assert (asked["role"], answered["role"]) == ("user", "assistant")
    assert asked["parts"][0]["content"].startswith("What is ")
    assert answered["parts"][0]["type"] == "text"
    assert "hunter22" not in everything(exporter)


def test_answers_that_guardrails_check_are_in_no_span(record: Record) -> None:
    exporter = record(record_arguments=True, record_results=True)
    guardrails = {"output": [{"type": "keyword", "config": {"keywords": ["no"]}, "action": "block"}]}
    with model_server([Reply("Withheld.")]) as server:
        conversation = Conversation(server, {**PROVIDERS["chat"]})
        turn = conversation.turn("Hello.")
        checked = turn.agent.model_validate({**turn.agent.model_dump(exclude_none=True), "guardrails": guardrails})
        conversation.turn = lambda text: replace(turn, text=text, agent=checked)  # type: ignore[method-assign]
        asyncio.run(conversation.ask("Hello."))
    assert named(exporter, "chat fake")
    assert "Withheld." not in everything(exporter)
    assert "Hello." not in everything(exporter)


def test_a_spec_keeps_its_messages_out_of_spans(record: Record) -> None:
    exporter = record(record_arguments=True, record_results=True)
    with model_server([Reply("Your answer.")]) as server:
        conversation = Conversation(server, PROVIDERS["chat"])
        turn = conversation.turn("Your question.")
        spec = turn.spec.model_copy(update={"policies": {"tracing": {"include_messages": False}}})
        conversation.turn = lambda text: replace(turn, text=text, spec=spec)  # type: ignore[method-assign]
        asyncio.run(conversation.ask("Your question."))
    assert named(exporter, "chat fake")
    assert "Your answer." not in everything(exporter)
    assert "Your question." not in everything(exporter)


# ---- turns and calls --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_scripted")
def test_calls_are_spans_below_the_turn_of_their_agent(clock: ManualClock, record: Record) -> None:
    exporter = record()
    made = house([("look", {"x": 1}), ("pay", {"x": 2})], "Done.", clock=clock)
    asyncio.run(made.take())
    (agent,) = named(exporter, "invoke_agent root")
    (look,), (pay,) = named(exporter, "execute_tool look"), named(exporter, "execute_tool pay")
    assert {look.parent.span_id, pay.parent.span_id} == {agent.context.span_id}  # type: ignore[union-attr]
    assert facts(look)["gen_ai.tool.name"] == "look"
    assert facts(look)["gen_ai.tool.call.id"] == "1.c0"
    assert facts(agent)["gen_ai.operation.name"] == "invoke_agent"
    assert not {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"} & facts(look).keys()


@pytest.mark.usefixtures("_scripted")
def test_arguments_and_results_have_a_switch_each(clock: ManualClock, record: Record) -> None:
    for switch, attribute in (("record_arguments", "arguments"), ("record_results", "result")):
        exporter = record(**{switch: True})
        asyncio.run(house([("look", {"x": 1})], "Done.", clock=clock).take())
        (look,) = named(exporter, "execute_tool look")
        recorded = {name for name in facts(look) if name.startswith("gen_ai.tool.call.") and not name.endswith("id")}
        assert recorded == {f"gen_ai.tool.call.{attribute}"}


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize(("field", "kept"), [("include_messages", "result"), ("include_tool_results", "arguments")])
def test_a_spec_withholds_arguments_or_results(field: str, kept: str, clock: ManualClock, record: Record) -> None:
    exporter = record(record_arguments=True, record_results=True)
    spec = spec_of().model_copy(update={"policies": {"tracing": {field: False}}})
    asyncio.run(house([("look", {"x": 1})], "Done.", spec=spec, clock=clock).take())
    (look,) = named(exporter, "execute_tool look")
    recorded = {name for name in facts(look) if name.startswith("gen_ai.tool.call.") and not name.endswith("id")}
    assert recorded == {f"gen_ai.tool.call.{kept}"}


@pytest.mark.usefixtures("_scripted")
def test_a_failed_call_is_an_error_and_a_question_is_none(clock: ManualClock, record: Record) -> None:
    exporter = record()

    def fails(_call: object) -> object:
        msg = f"It failed with {SECRET}."
        raise ValueError(msg)

    asyncio.run(house([("look", {})], "Done.", functions={"look": fails}, clock=clock).take())
    (look,) = named(exporter, "execute_tool look")
    assert (look.status.status_code, facts(look)["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert "hunter22" not in everything(exporter)

    exporter = record()
    gated = house([("pay", {})], "Done.", gates={"pay": [ToolGate(id="before", position="tool")]}, clock=clock)
    with pytest.raises(PeopleRequired):
        asyncio.run(gated.take())
    (agent,) = named(exporter, "invoke_agent root")
    assert (agent.status.status_code, named(exporter, "execute_tool pay")) == (StatusCode.UNSET, [])
    [question] = asyncio.run(gated.questions())
    asyncio.run(gated.take({question.key: decided("approved")}))
    assert len(named(exporter, "execute_tool pay")) == 1


@pytest.mark.usefixtures("_scripted")
def test_an_agent_behind_a_tool_has_a_span_below_its_caller(clock: ManualClock, record: Record) -> None:
    exporter = record()
    spec = spec_of(
        agent={"tools": {"include": ["helper"]}},
        tools={"helper": {"description": "Help.", "agent": "helper"}},
        components={"agents": {"helper": {"name": "helper", "model": {"provider": "openai", "name": "m"}}}},
    )
    made = house([("helper", {"input": "Go."})], "Done.", spec=spec, others={"helper": ["Helped."]}, clock=clock)
    asyncio.run(made.take())
    (root,), (helper,) = named(exporter, "invoke_agent root"), named(exporter, "invoke_agent helper")
    assert helper.parent.span_id == root.context.span_id  # type: ignore[union-attr]
