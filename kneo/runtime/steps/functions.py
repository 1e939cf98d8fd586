"""Calling a spec's function: checked input, checked output, bounded size. The same in a thread and in a child process."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass

from kneo.errors import Invalid
from kneo.runtime.steps.code import Code
from kneo.runtime.steps.context import StepContext
from kneo.spec.json_schema import Schema, SchemaInvalid, Uncheckable, compile_schema

MAX_OUTPUT_CHARS = 1_000_000
"""What a function may return; more would have to be stored with every later step."""


@dataclass(frozen=True, kw_only=True)
class FunctionSchemas:
    """What a function takes and returns, where its spec says it, as JSON Schemas."""

    takes: Schema | None = None
    returns: Schema | None = None


def is_async(code: Code) -> bool:
    return inspect.iscoroutinefunction(code.function)


def keywords(code: Code, context: StepContext) -> dict[str, StepContext]:
    """Return the step's context for a function that has a parameter of that name."""
    return {"context": context} if "context" in inspect.signature(code.function).parameters else {}


def call(code: Code, text: str, context: StepContext, signature: FunctionSchemas) -> str:
    """Call a plain function and return its result as text.

    Raises:
        Invalid: ``function_input_invalid``, ``function_output_invalid`` or ``output_too_large``.
    """
    check_input(text, signature)
    return as_text(code.function(text, **keywords(code, context)), signature)


def check_input(text: str, signature: FunctionSchemas) -> None:
    """Check what a function is given; a schema of anything but a string sees the text read as JSON.

    Raises:
        Invalid: ``function_input_invalid``.
    """
    if signature.takes is not None:
        _check(_seen(text, signature.takes), signature.takes, "was given", "function_input_invalid")


def as_text(result: object, signature: FunctionSchemas) -> str:
    """Check what a function returned and turn it into text.

    Raises:
        Invalid: ``function_output_invalid`` or ``output_too_large``.
    """
    if signature.returns is not None:
        seen = _seen(result, signature.returns) if isinstance(result, str) else result
        _check(seen, signature.returns, "returned", "function_output_invalid")
    output = json_text(result) if isinstance(result, dict | list | tuple) else str(result)
    if len(output) > MAX_OUTPUT_CHARS:
        msg = f"The function returned {len(output)} characters; at most {MAX_OUTPUT_CHARS} are kept."
        raise Invalid(msg, code="output_too_large")
    return output


def json_text(value: object) -> str:
    """Write what a function returned as JSON, for the next step to read.

    Raises:
        Invalid: ``function_output_invalid``: it holds what JSON cannot say.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"What the function returned cannot be written as JSON: {error}"
        raise Invalid(msg, code="function_output_invalid", hint="Return a text, or what JSON can say.") from error


def _seen(text: str, schema: Schema) -> object:
    if schema.get("type") == "string":
        return text
    try:
        seen: object = json.loads(text)
    except ValueError:
        return text
    return seen


def _check(value: object, schema: Schema, what: str, code: str) -> None:
    try:
        errors = compile_schema(schema).errors(value, limit=1)
    except SchemaInvalid as error:
        msg = f"What the function {what} cannot be checked, because its schema cannot be used. {error}"
        raise Invalid(msg, code=code) from error
    except Uncheckable as error:
        msg = f"What the function {what} cannot be checked against its schema: {error}."
        raise Invalid(msg, code=code) from error
    for wrong in errors:
        msg = f"What the function {what} does not fit its schema at {wrong.json_path}: {wrong.message[:300]}"
        raise Invalid(msg, code=code)
