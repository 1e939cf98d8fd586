"""Spans of agents, model requests and tool calls, by OpenTelemetry's semantic conventions for generative AI.

A span has names, numbers and settings. Messages, arguments and results are added only where the operator enables them, redacted
and truncated; the messages of an agent with guardrails on its answers never are, because no view may show what did not pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    RetryPromptPart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from kneo.agents.providers import ProviderConnection
from kneo.agents.turn import AnswerRequired, PeopleRequired, Postponed, Stopped, Turn
from kneo.redaction import redact_text
from kneo.spec.models.agent import ModelChoice
from kneo.spec.models.spec import Tool, TracingPolicy, tracing_policy
from kneo.telemetry import CONTENT_CHARS, Span, span

MAX_MESSAGES = 20
"""The latest messages of a request that its span has at most."""

_PROVIDERS: Mapping[str, str] = {
    "openai-agents": "openai",
    "google": "gcp.gemini",
    "google-adk": "gcp.gemini",
    "azure": "azure.ai.openai",
}
"""The names that the conventions give to providers, where they differ from Kneo's."""

PAUSES = (PeopleRequired, Postponed, Stopped)
"""Ways in which a turn ends for now, which are no errors."""


def agent_span(turn: Turn) -> AbstractContextManager[Span]:
    """Record a turn of an agent, also of one behind a tool."""
    model = turn.agent.model
    return span(
        f"invoke_agent {turn.agent_name}",
        expected=PAUSES,
        gen__ai_operation_name="invoke_agent",
        gen__ai_agent_name=turn.agent_name,
        gen__ai_provider_name=_provider(model.provider) if model is not None else None,
        gen__ai_request_model=model.name if model is not None else None,
        gen__ai_conversation_id=f"{turn.run_id}:{turn.conversation}",
        kneo_run__id=turn.run_id,
        kneo_step__id=turn.step_id,
    )


def request_span(
    turn: Turn, choice: ModelChoice, connection: ProviderConnection, max_tokens: int | None
) -> AbstractContextManager[Span]:
    """Record one request to a model; a repeated request has a span of its own."""
    address = urlsplit(connection.base_url)
    return span(
        f"chat {choice.name}",
        kind="client",
        expected=PAUSES,
        gen__ai_operation_name="chat",
        gen__ai_provider_name=_provider(choice.provider),
        gen__ai_request_model=choice.name,
        gen__ai_request_max__tokens=max_tokens,
        gen__ai_request_temperature=choice.temperature,
        gen__ai_agent_name=turn.agent_name,
        gen__ai_conversation_id=f"{turn.run_id}:{turn.conversation}",
        server_address=address.hostname,
        server_port=address.port or (443 if address.scheme == "https" else 80),
        kneo_run__id=turn.run_id,
        kneo_step__id=turn.step_id,
    )


def note_reply(traced: Span, turn: Turn, messages: Sequence[ModelMessage], reply: ModelResponse) -> None:
    """Add a reply to the span of its request, and the messages where they are recorded."""
    traced.note(
        gen__ai_response_model=reply.model_name,
        gen__ai_response_id=reply.provider_response_id,
        gen__ai_response_finish__reasons=(reply.finish_reason,) if reply.finish_reason else None,
        gen__ai_usage_input__tokens=reply.usage.input_tokens,
        gen__ai_usage_output__tokens=reply.usage.output_tokens,
    )
    policy = tracing_policy(turn.spec)
    if turn.withheld is not None or not policy.messages:
        return
    if traced.has_arguments:
        latest = [_message(each, policy) for each in messages[-MAX_MESSAGES:]]
        traced.note(gen__ai_input_messages=_json(latest))
    if traced.has_results:
        traced.note(gen__ai_output_messages=_json([_message(reply, policy)]))


def tool_span(turn: Turn, name: str, call_id: str, tool: Tool) -> AbstractContextManager[Span]:
    """Record a call of a tool, with all its tries."""
    return span(
        f"execute_tool {name}",
        expected=(AnswerRequired, *PAUSES),
        gen__ai_operation_name="execute_tool",
        gen__ai_tool_name=name,
        gen__ai_tool_call_id=call_id,
        gen__ai_tool_type=tool.kind.span_type,
        gen__ai_agent_name=turn.agent_name,
        kneo_run__id=turn.run_id,
        kneo_step__id=turn.step_id,
    )


def note_call(traced: Span, turn: Turn, arguments: object, result: object) -> None:
    """Add arguments and the result of a call, where they are recorded."""
    policy = tracing_policy(turn.spec)
    if traced.has_arguments and policy.messages:
        traced.note(gen__ai_tool_call_arguments=_text(arguments))
    if traced.has_results and policy.tool_results:
        traced.note(gen__ai_tool_call_result=_text(result))


def _provider(name: str) -> str:
    return _PROVIDERS.get(name, name)


def _message(message: ModelMessage, policy: TracingPolicy) -> dict[str, object]:
    shown_parts = [part for part in message.parts if policy.tool_results or not isinstance(part, ToolReturnPart)]
    parts = [shown for part in shown_parts if (shown := _part(part)) is not None]
    return {"role": _role(message), "parts": parts}


def _role(message: ModelMessage) -> str:
    if isinstance(message, ModelResponse):
        return "assistant"
    if any(isinstance(part, ToolReturnPart | RetryPromptPart) for part in message.parts):
        return "tool"
    return "user"


def _part(part: object) -> dict[str, object] | None:
    match part:
        case TextPart(content=str(text)) | SystemPromptPart(content=str(text)) | UserPromptPart(content=str(text)):
            return {"type": "text", "content": _text(text)}
        case ToolCallPart():
            name = {"name": part.tool_name, "id": part.tool_call_id}
            return {"type": "tool_call", **name, "arguments": _text(part.args)}
        case ToolReturnPart() | RetryPromptPart():
            return {"type": "tool_call_response", "id": part.tool_call_id, "response": _text(part.content)}
        case _:
            return None


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return redact_text(text[:CONTENT_CHARS])


def _json(messages: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(messages, ensure_ascii=False)
