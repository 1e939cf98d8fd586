"""Structured output: the answer of a model as JSON that satisfies the agent's ``output_schema``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_ai.messages import ModelRequest, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from kneo.agents.texts import MAX_DEPTH
from kneo.agents.tool_calls.questions import find_misfits
from kneo.digest import canonical_json, find_uncanonical
from kneo.spec.models.agent import OUTPUT_TOOL

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
