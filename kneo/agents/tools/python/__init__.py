"""Tools that are Python functions, of a spec's modules and of the process's registry."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from kneo.agents.function_tools import FunctionTool, Handler, ToolRegistry
from kneo.agents.tools.middleware import context_of
from kneo.agents.turn import ToolCall
from kneo.function_context import ToolContext, bind_arguments, is_async_function, parameters_of
from kneo.sandbox.functions import check_review, checked_result, tool_exited
from kneo.spec.code import RunCode
from kneo.spec.models.spec import Tool

MAX_RESULT_CHARS = 1_000_000
"""Characters of a result; the rest is cut."""


def call_tool(function: Callable[..., object], arguments: Mapping[str, object], context: ToolContext) -> object:
    """Call a tool, and return what it returns.

    Raises:
        Invalid: ``tool_exited``: the tool tried to end more than its call.
        Exception: the tool raised it.
    """
    positional, named = bind_arguments(function, parameters_of(function), arguments, context)
    try:
        return function(*positional, **named)
    except Exception:
        raise
    except BaseException as error:  # noqa: BLE001 - of the tool, not of this process
        raise tool_exited(error) from None


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
        raise tool_exited(error) from None


def bounded_result(result: object) -> object:
    """Return a tool's result as a JSON value; one that is too long becomes a text that is cut.

    Raises:
        Invalid: ``tool_result_invalid``: JSON cannot represent it.
    """
    value = checked_result(result)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_RESULT_CHARS:
        return value
    return f"{text[:MAX_RESULT_CHARS]} [cut: {len(text)} characters in all]"


class Functions(Protocol):
    """The functions of the modules that specs may name, and where they are called."""

    def load(self, implementation: str, code: RunCode) -> Handler:
        """Load a function of the project by its dotted name; raises why this process may not call it."""
        ...

    async def in_thread(self, work: Callable[[], object]) -> object:
        """Do work in a thread; a cancellation abandons it."""
        ...

    async def call_in_sandbox(self, call: ToolCall) -> tuple[object] | None:
        """Call a function in a sandbox and return its result in a tuple; ``None`` where it runs in this process.

        Raises:
            KneoError: the function raised, took its process down with it, or may not be called.
        """
        ...


class PythonTools:
    """Calls Python functions for agents.

    A function of a module runs in a sandbox. At level ``none``, and where the program registered it, an asynchronous function runs
    on the event loop, any other one in a thread.

    Args:
        functions: The functions of modules.
        registry: The tools that the program registered.
    """

    def __init__(self, functions: Functions, registry: ToolRegistry | None = None) -> None:
        self._functions = functions
        self._registry = registry or ToolRegistry()

    def registered(self, name: str) -> Tool | None:
        """Return a tool of the registry as a spec would declare it."""
        if name not in self._registry.names:
            return None
        definition = self._registry.get(name).definition
        return Tool(description=definition.description, parameters=dict(definition.parameters))

    async def call(self, call: ToolCall) -> object:
        """Call the function of a tool; a cancellation kills its sandbox, or abandons its thread.

        Raises:
            NotFound: ``tool_not_found``: the tool names no function, and the registry has none of its name.
            Forbidden: the module may not be named, is not the pinned one, or the tool lacks a gate that its function declares.
            Exception: the function raised it.
        """
        called = await self._functions.call_in_sandbox(call)
        if called is not None:
            return bounded_result(called[0])
        function: Handler = (
            self._registry.get(call.name).handler
            if call.tool.implementation is None
            else self._functions.load(call.tool.implementation, call.turn.code)
        )
        check_review(call.name, function.review if isinstance(function, FunctionTool) else (), gates_of(call))
        return await self._call(function, call, context_of(call))

    async def _call(self, function: Handler, call: ToolCall, context: ToolContext) -> object:
        if is_async_function(function):
            result = call_tool(function, call.arguments, context)
        else:
            result = await self._functions.in_thread(partial(call_tool, function, call.arguments, context))
        if inspect.isawaitable(result):
            result = await await_tool(result)
        return bounded_result(result)


def gates_of(call: ToolCall) -> list[str]:
    """Return the positions at which the tool of the spec asks people."""
    return list(call.tool.review.gates()) if call.tool.review is not None else []
