"""Calls of tools that are Python functions: one map of arguments in, a bounded JSON value out.

The same on the event loop, in a thread and in a child process.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping

from kneo.errors import Invalid
from kneo.tools import ToolContext, ToolResult

MAX_RESULT_CHARS = 1_000_000
"""Characters of a result; the rest is cut."""

_BY_NAME = ("key", "context")
"""Parameters that do not take the arguments."""


def is_async_tool(function: Callable[..., object]) -> bool:
    """Return whether a call of a function, or of an object, is a coroutine."""
    called = function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(called)


def call_tool(function: Callable[..., object], arguments: Mapping[str, object], context: ToolContext) -> object:
    """Call a tool, and return what it returns.

    Raises:
        Invalid: ``tool_exited``: the tool tried to end more than its call.
        Exception: the tool raised it.
    """
    positional, named = _bind(function, arguments, context)
    try:
        return function(*positional, **named)
    except Exception:
        raise
    except BaseException as error:  # noqa: BLE001 - of the tool, not of this process
        raise _exited(error) from None


async def await_tool(pending: Awaitable[object]) -> object:
    """Await the result of an asynchronous tool.

    Raises:
        Invalid: ``tool_exited``: the tool tried to end more than its call.
        asyncio.CancelledError: the call is cancelled.
        Exception: the tool raised it.
    """
    try:
        return await pending
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise _exited(error) from None


def bounded_result(result: object) -> object:
    """Return a tool's result as a JSON value; one that is too long becomes a text that is cut.

    Raises:
        Invalid: ``tool_result_invalid``: JSON cannot represent it.
    """
    if isinstance(result, ToolResult):
        result = result.output
    if isinstance(result, str):
        return _cut(result)
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The tool returned {type(result).__name__}, which JSON cannot represent: {str(error)[:300]}"
        hint = "Return a text, or values that JSON can represent."
        raise Invalid(msg, code="tool_result_invalid", hint=hint) from None
    if len(text) > MAX_RESULT_CHARS:
        return _cut(text)
    value: object = json.loads(text)
    return value


def _bind(
    function: Callable[..., object], arguments: Mapping[str, object], context: ToolContext
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments of the call: ``key`` and ``context`` by name, the map of arguments as the other parameter."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables of C have no signature
        return (dict(arguments),), {}
    given = {"key": context.idempotency_key, "context": context}
    named: dict[str, object] = {each.name: given[each.name] for each in parameters if each.name in _BY_NAME}
    others = [each for each in parameters if each.name not in _BY_NAME]
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    required = [each.name for each in others if each.default is each.empty and each.kind not in variadic]
    if len(required) > 1:
        msg = (
            f"The tool {context.tool} is a function of {', '.join(required)[:200]}; a tool takes one map of arguments."
        )
        hint = "Write it as def tool(arguments): …, or decorate it with kneo.sdk.tools.tool."
        raise Invalid(msg, code="tool_signature_invalid", hint=hint)
    if not others:
        return (), named
    first = others[0]
    if first.kind in {first.POSITIONAL_ONLY, first.VAR_POSITIONAL}:
        return (dict(arguments),), named
    if first.kind is first.VAR_KEYWORD:
        return (), {**arguments, **named}
    return (), {first.name: dict(arguments), **named}


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]} [cut: {len(text)} characters in all]"


def _exited(error: BaseException) -> Invalid:
    msg = f"The tool tried to end its process: {type(error).__name__}({str(error)[:200]})."
    return Invalid(msg, code="tool_exited", hint="Return a result, or raise an Exception.")
