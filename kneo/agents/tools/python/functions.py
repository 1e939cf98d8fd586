"""Calls of functions that are tools: their arguments, what they raise, and the bound of their results."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping

from kneo.errors import Invalid
from kneo.function_context import ToolContext, ToolResult, bind_arguments

MAX_RESULT_CHARS = 1_000_000
"""Characters of a result; the rest is cut."""


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
    positional, named = bind_arguments(function, arguments, context)
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


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]} [cut: {len(text)} characters in all]"


def _exited(error: BaseException) -> Invalid:
    msg = f"The tool tried to end its process: {type(error).__name__}({str(error)[:200]})."
    return Invalid(msg, code="tool_exited", hint="Return a result, or raise an Exception.")
