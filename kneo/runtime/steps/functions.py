"""Python functions of steps: their context; calls with checked input, checked output and bounded size."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass

from kneo.errors import Invalid
from kneo.function_context import Cancelled, CancelToken, Declined, StepContext, WaitForAnswer  # noqa: F401 - for functions of specs
from kneo.runtime.steps.code import Code
from kneo.spec.json_schema import Schema, SchemaInvalid, Uncheckable, compile_schema


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    text: str
    code_digest: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """Facts for the trace, such as the model; never content."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Values for conditions of type ``metadata_equals``."""
    input_text: str | None = None
    """The input as the guardrails of the step's agent passed it on; ``None`` of a function, whose input nothing checks."""


# ---- calls of functions -----------------------------------------------------------------------------------------

MAX_OUTPUT_CHARS = 1_000_000
"""Characters that a function may return: the output is stored with later steps."""


@dataclass(frozen=True, kw_only=True)
class FunctionSchemas:
    """The JSON Schemas of a function's input and output, where the spec declares them."""

    takes: Schema | None = None
    returns: Schema | None = None


def is_async(code: Code) -> bool:
    return inspect.iscoroutinefunction(code.function)


def call(code: Code, text: str, context: StepContext, signature: FunctionSchemas) -> str:
    """Call a plain function and return its result as text.

    Raises:
        Invalid: ``function_input_invalid``, ``function_output_invalid`` or ``output_too_large``.
    """
    return as_text(call_for_value(code, text, context, signature), signature)


def call_for_value(code: Code, text: str, context: StepContext, signature: FunctionSchemas) -> object:
    """Call a function with a text, and return what it returns; a coroutine is returned as it is.

    Raises:
        Invalid: ``function_input_invalid``.
    """
    check_input(text, signature)
    takes_context = "context" in inspect.signature(code.function).parameters
    return code.function(text, context=context) if takes_context else code.function(text)


def check_value(result: object, signature: FunctionSchemas) -> object:
    """Check what a function returned to an agent, and return it as a JSON value.

    Raises:
        Invalid: ``function_output_invalid`` or ``output_too_large``.
    """
    value = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    if signature.returns is not None:
        _check(value, signature.returns, "result", "function_output_invalid")
    found: object = json.loads(check_output(_json_text(value)))
    return found


def check_input(text: str, signature: FunctionSchemas) -> None:
    """Check a function's input; a schema of another type than string is checked against the text read as JSON.

    Raises:
        Invalid: ``function_input_invalid``.
    """
    if signature.takes is not None:
        _check(_json_value(text, signature.takes), signature.takes, "input", "function_input_invalid")


def as_text(result: object, signature: FunctionSchemas) -> str:
    """Check a function's result and return it as text.

    Raises:
        Invalid: ``function_output_invalid`` or ``output_too_large``.
    """
    if signature.returns is not None:
        seen = _json_value(result, signature.returns) if isinstance(result, str) else result
        _check(seen, signature.returns, "result", "function_output_invalid")
    return check_output(_json_text(result) if isinstance(result, dict | list | tuple) else str(result))


def check_output(output: str) -> str:
    """Check the length of what a function returned.

    Raises:
        Invalid: ``output_too_large``.
    """
    if len(output) > MAX_OUTPUT_CHARS:
        msg = f"The function returned {len(output):,} characters; at most {MAX_OUTPUT_CHARS:,} are kept."
        raise Invalid(msg, code="output_too_large", hint="Store large content elsewhere, and return where it is.")
    return output


def _json_text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The function's result cannot be written as JSON: {error}"
        raise Invalid(
            msg, code="function_output_invalid", hint="Return a text, or values that JSON can represent."
        ) from error


def _json_value(text: str, schema: Schema) -> object:
    if schema.get("type") == "string":
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def _check(value: object, schema: Schema, what: str, code: str) -> None:
    try:
        errors = compile_schema(schema).errors(value, limit=1)
    except SchemaInvalid as error:
        msg = f"The function's {what} cannot be checked, because its schema cannot be used. {error}"
        raise Invalid(msg, code=code) from error
    except Uncheckable as error:
        msg = f"The function's {what} cannot be checked against its schema: {error}."
        raise Invalid(msg, code=code) from error
    for wrong in errors:
        msg = f"The function's {what} does not fit its schema at {wrong.json_path}: {wrong.message[:300]}"
        raise Invalid(msg, code=code)
