"""Replies of models as the journal keeps them, with sound texts and calls with ids of their own, what they cost, and answers
that satisfy an ``output_schema``. Pure.

An unknown cost is ``None`` and never 0: a budget could not be kept with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import count

from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from kneo.agents.texts import MAX_DEPTH, UNSOUND, find_flaw, paired, sound_text
from kneo.agents.tool_calls.questions import find_misfits
from kneo.digest import canonical_json, find_uncanonical
from kneo.spec.models.agent import OUTPUT_TOOL, ModelChoice
from kneo.spec.models.providers import PROVIDERS
from kneo.spec.policy import ModelPrice, ModelRules

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def sound_reply(reply: ModelResponse) -> ModelResponse:
    """Return a reply of a model with sound texts. Arguments that have no canonical form stay so: their call is refused later."""
    parts = []
    for part in reply.parts:
        changes = {
            item.name: sound_text(value)
            for item in fields(part)
            if item.init and isinstance(value := getattr(part, item.name), str) and UNSOUND.search(value)
        }
        if isinstance(part, ToolCallPart):
            changes |= _sound_arguments(part)
        parts.append(replace(part, **changes) if changes else part)  # type: ignore[arg-type]
    texts = {name: sound_text(text) for name in ("model_name",) if (text := getattr(reply, name)) is not None}
    return replace(reply, parts=parts, **texts)  # type: ignore[arg-type]


def _sound_arguments(part: ToolCallPart) -> dict[str, str]:
    """Return the change of a call whose arguments cannot be kept as they are: a text in which such characters are escaped."""
    written = part.args
    if isinstance(written, str):
        return {"args": UNSOUND.sub(_escaped, paired(written))} if UNSOUND.search(written) else {}
    if written is None or find_flaw(written) is None:
        return {}
    try:
        return {"args": json.dumps(written)}
    except (TypeError, ValueError, RecursionError):
        return {"args": "[the arguments cannot be written as JSON]"}


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def with_distinct_calls(reply: ModelResponse) -> ModelResponse:
    """Return a reply whose calls have ids that are distinct and fit into keys.

    Some servers say ``call_0`` for every call; the id becomes a part of the names of entries and questions.
    """
    ids: set[str] = set()
    parts = []
    for number, part in enumerate(reply.parts):
        if isinstance(part, ToolCallPart):
            call_id = part.tool_call_id
            if call_id in ids or not _CALL_ID.fullmatch(call_id):
                call_id = next(each for each in (f"call_{number}_{n}" for n in count()) if each not in ids)
                part = replace(part, tool_call_id=call_id)  # noqa: PLW2901
            ids.add(call_id)
        parts.append(part)
    return replace(reply, parts=parts)


def cost_micros(choice: ModelChoice, reply: ModelResponse, rules: ModelRules | None) -> int | None:
    """Return the cost of a reply in millionths of a US dollar; ``None`` where the price or the usage is unknown."""
    usage = reply.usage
    if not usage.input_tokens and not usage.output_tokens:
        return None
    price = _stated_price(choice, reply.model_name, rules)
    if price is not None:
        # Dollars per million tokens are millionths of a dollar per token.
        return round(usage.input_tokens * price.input + usage.output_tokens * price.output)
    return _known_cost(choice, reply)


def is_priced(choice: ModelChoice, rules: ModelRules | None) -> bool:
    """Tell whether the cost of a model's replies can be known."""
    if _stated_price(choice, None, rules) is not None:
        return True
    provider = PROVIDERS.get(choice.provider)
    names = {"responses": "openai", "chat": "openai", "messages": "anthropic", "gemini": "google"}
    probe = ModelResponse(
        parts=[],
        usage=RequestUsage(input_tokens=1, output_tokens=1),
        model_name=choice.name,
        provider_name=names[provider.wire] if provider is not None else None,
    )
    return _known_cost(choice, probe) is not None


def _stated_price(choice: ModelChoice, reported: str | None, rules: ModelRules | None) -> ModelPrice | None:
    if rules is None:
        return None
    return rules.prices.get(choice.name) or (rules.prices.get(reported) if reported else None)


def _known_cost(choice: ModelChoice, reply: ModelResponse) -> int | None:
    """Return the cost by the prices that come with the library; other servers set their own prices."""
    provider = PROVIDERS.get(choice.provider)
    if provider is None or not provider.has_prices:
        return None
    try:
        return round(reply.cost().total_price * 1_000_000)
    except (AssertionError, LookupError, ValueError):
        return None


MAX_MISFITS = 2
"""Answers that do not fit and are asked for again."""

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


@dataclass(frozen=True)
class StructuredAnswer:
    """An answer that satisfies the schema: its canonical JSON, its scalars of the top level, and its value."""

    text: str
    metadata: Mapping[str, object]
    value: object


@dataclass(frozen=True)
class Misfit:
    """The reason why an answer does not satisfy the schema, in words for the model."""

    message: str

    @property
    def correction(self) -> str:
        """The message to the model."""
        return f"The answer does not satisfy the JSON Schema: {self.message}. Answer again, with JSON that does."


def output_parameters(
    schema: Mapping[str, object], tools: list[ToolDefinition], *, native: bool
) -> ModelRequestParameters:
    """Return the parameters of a request for structured output.

    Args:
        schema: The agent's ``output_schema``.
        tools: The tools that the model is offered.
        native: Whether the model has a JSON mode with a schema. It is used where no tools are offered: some servers do not
            accept both.
    """
    if native and not tools:
        return ModelRequestParameters(
            output_mode="native", output_object=OutputObjectDefinition(json_schema=dict(schema), name=OUTPUT_TOOL)
        )
    answer = ToolDefinition(
        name=OUTPUT_TOOL,
        description="Give the final answer.",
        parameters_json_schema=dict(schema),
        kind="output",
    )
    return ModelRequestParameters(
        function_tools=tools, output_mode="tool", output_tools=[answer], allow_text_output=False
    )


def read_answer(schema: Mapping[str, object], reply: ModelResponse) -> StructuredAnswer | Misfit:
    """Read the answer of a model, from a call of the output tool or from its text."""
    called = next((call for call in reply.tool_calls if call.tool_name == OUTPUT_TOOL), None)
    written: object = called.args if called is not None else _unfenced(reply.text or "")
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except (ValueError, RecursionError):
            return Misfit("the answer is not JSON")
    return structured_answer(schema, written)


def structured_answer(schema: Mapping[str, object], written: object) -> StructuredAnswer | Misfit:
    """Return a JSON value as an answer, or why it does not satisfy the schema."""
    misfit = find_uncanonical(written, MAX_DEPTH) or find_misfits(schema, written)
    if misfit is not None:
        return Misfit(misfit)
    scalars = {}
    if isinstance(written, Mapping):
        scalars = {name: value for name, value in written.items() if isinstance(value, str | int | float | bool)}
    return StructuredAnswer(canonical_json(written).decode(), scalars, written)


def ask_again(reply: ModelResponse, message: str) -> ModelRequest:
    """Return the request after an answer that is not accepted; the message is for the model."""
    calls = [call for call in reply.tool_calls if call.tool_name == OUTPUT_TOOL]
    if not calls:
        return ModelRequest(parts=[UserPromptPart(message)])
    return ModelRequest(
        parts=[ToolReturnPart(OUTPUT_TOOL, message, tool_call_id=call.tool_call_id, outcome="failed") for call in calls]
    )


def _unfenced(text: str) -> str:
    """Return a text without a Markdown fence around the whole of it, which models without a JSON mode write."""
    fenced = _FENCE.fullmatch(text)
    return fenced[1] if fenced is not None else text
