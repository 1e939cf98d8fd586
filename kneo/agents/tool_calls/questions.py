"""Questions about tool calls, and the effects of their answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from kneo.agents.texts import Arguments, find_flaw
from kneo.agents.tools.kinds import schema_of
from kneo.agents.turn import CallQuestion, ToolCall, ToolGate
from kneo.digest import DigestLabel, digest_of_json
from kneo.errors import Invalid
from kneo.records.task import SANDBOX, Decision, DecisionKind
from kneo.spec.call_title import call_title
from kneo.spec.json_schema import SchemaInvalid, Uncheckable, compile_schema, find_flaws
from kneo.spec.models.spec import Tool
from kneo.spec.tool_kinds import ASK_QUESTION

MAX_OPTIONS = 50
MAX_MISFITS = 5
"""Errors of one value that a message lists."""

ASK_QUESTION_SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 1, "maxLength": 10_000},
        "options": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 500},
            "minItems": 2,
            "maxItems": MAX_OPTIONS,
            "uniqueItems": True,
        },
        "schema": {
            "type": "object",
            "description": "JSON Schema of the answer, where a text is not enough.",
            "additionalProperties": True,
        },
    },
    "required": ["question"],
    "additionalProperties": False,
}

ASK_TOOL = Tool(description="Ask a person a question. The answer is the result.", parameters=dict(ASK_QUESTION_SCHEMA))
"""The built-in tool with which an agent asks a person."""

AFTER_INTERRUPTION = ("repeat", "done", "stop")
"""The options for a call that was under way when its process ended."""

REFUSING = frozenset({"stop", "fail", "cancel"})
"""Effects of a rejection that end the run; after every other one, the model gets the rejection as the call's result."""


def gates_of(call: ToolCall) -> Sequence[ToolGate]:
    """Return the gates that ask about a call with its arguments, in their order."""
    return call.turn.gates(call.turn.agent_name, call.name, call.arguments)


def gate_question(call: ToolCall, gate: ToolGate, sandbox: Mapping[str, object] | None = None) -> CallQuestion:
    """Return a gate's question about a call, with the level and the profile of its sandbox.

    The first gate has the call's task key; each further gate, and a gate that is asked again because another person edited the
    arguments, has a key of its own: an answer is valid for the arguments that were shown. It is found by their whole digest;
    the task key, which people read, has a label of it.
    """
    digest = digest_of_json(call.arguments)
    edited = f"@{digest}" if call.is_edited else ""
    label = f"@{DigestLabel(digest)}" if call.is_edited else ""
    is_first = not call.is_edited and gates_of(call)[0].id == gate.id
    is_external = gate.position == "external"
    schema = call.tool.returns if is_external else schema_of(call.tool)
    title = call.tool.title
    return CallQuestion(
        key=f"{call.key}:{gate.id}{edited}",
        task_key=call.task_key if is_first else f"{call.task_key}+{gate.id}{label}",
        kind="external" if is_external else "approval",
        gate=gate.id,
        agent=call.turn.agent_name,
        tool=call.name,
        arguments=call.arguments,
        answer_schema=schema or None,
        title=call_title(call.name, title, call.arguments) if title is not None else None,
        facts={
            **({"idempotency_key": call.idempotency_key} if is_external else {}),
            **({SANDBOX: sandbox} if sandbox is not None else {}),
        },
    )


def asked_question(call: ToolCall) -> CallQuestion:
    """Return the question of an agent that calls ``ask_question``."""
    options, schema = call.arguments.get("options"), call.arguments.get("schema")
    return CallQuestion(
        key=f"{call.key}:question",
        task_key=call.task_key,
        kind="question",
        agent=call.turn.agent_name,
        tool=ASK_QUESTION,
        arguments=call.arguments,
        answer_schema=schema if isinstance(schema, Mapping) else None,
        prompt=str(call.arguments["question"]),
        options=tuple(str(option) for option in options) if isinstance(options, list) else (),
        human=call.turn.agent.ask_question,
    )


def form_question(call: ToolCall, number: int, prompt: str, schema: Arguments) -> CallQuestion:
    """Return a tool's own question (MCP elicitation), the nth of its call."""
    return CallQuestion(
        key=f"{call.key}:elicitation.{number}",
        task_key=f"{call.task_key}:elicitation.{number}",
        kind="elicitation",
        agent=call.turn.agent_name,
        tool=call.name,
        arguments=call.arguments,
        answer_schema=schema,
        prompt=prompt,
    )


def interrupted_question(call: ToolCall, number: int, facts: Arguments) -> CallQuestion:
    """Return the question whether a call took effect that was under way when its process ended.

    A repeated call that is interrupted again is another question: ``number`` counts its beginnings.
    """
    return CallQuestion(
        key=f"{call.key}:interrupted.{number}",
        task_key=f"{call.task_key}:interrupted.{number}",
        kind="interrupted",
        agent=call.turn.agent_name,
        tool=call.name,
        arguments=call.arguments,
        prompt=f"The call of {call.name} was under way when its process ended. It began at {facts['begun_at']} with the "
        f"idempotency key {facts['idempotency_key']}. Find out whether it took effect, then choose: repeat (it did not), "
        "done (it did) or stop (cancel the run).",
        options=AFTER_INTERRUPTION,
        facts=facts,
    )


def edited_arguments(arguments: Arguments, decision: Decision) -> Arguments:
    """Return the arguments of a call after an approval: edited as a whole, or completed by the values of a form.

    Raises:
        Invalid: ``human_input_invalid``: the edited arguments are not a JSON object.
    """
    if decision.kind is DecisionKind.EDITED:
        edited = decision.data if decision.data is not None else _json(decision.content)
        if not isinstance(edited, Mapping):
            msg = "Edited arguments are a JSON object."
            raise Invalid(msg, code="human_input_invalid")
        arguments = edited
    return {**arguments, **decision.values} if decision.values else arguments


def _json(text: str | None) -> object:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def answer_of(decision: Decision) -> object:
    """Return what a person provided: a JSON value, the values of a form, the selected options, or a text."""
    if decision.data is not None:
        return decision.data
    if decision.values is not None:
        return dict(decision.values)
    if len(decision.selected_options) > 1:
        return list(decision.selected_options)
    return decision.selected_option if decision.selected_option is not None else decision.content or ""


def argument_misfits(schema: Arguments, arguments: object) -> str | None:
    """Return why arguments are none of a call with a JSON Schema, in one text for a model; ``None`` where they are."""
    return find_flaw(arguments) or find_misfits(schema, arguments)


def find_misfits(schema: Arguments, value: object) -> str | None:
    """Return what of a value does not satisfy a JSON Schema, in one text for a model; ``None`` where it does."""
    try:
        errors = compile_schema(schema).errors(value, MAX_MISFITS)
    except SchemaInvalid as error:
        return f"the JSON Schema cannot be used: {error}"[:500]
    except Uncheckable as error:
        return f"it cannot be checked: {error}"
    return "; ".join(f"{error.json_path}: {error.message[:300]}" for error in errors) or None


def schema_misfit(call: ToolCall) -> str | None:
    """Return why the schema of a call of ``ask_question`` cannot be used."""
    schema = call.arguments.get("schema")
    flaws = find_flaws(schema) if isinstance(schema, Mapping) else ()
    return f"$.schema: {flaws[0]}"[:500] if flaws else None
