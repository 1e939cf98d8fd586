"""The backend of tools that are Python functions, of a spec's modules and of the process's registry, and middleware."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial

from kneo.agents.turn import AnswerRequired, ToolBackend, ToolCall
from kneo.errors import Forbidden, KneoError
from kneo.runtime.steps.child_process import ChildFailed, ChildProcesses
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.functions import await_tool, bounded_result, call_tool, is_async_tool
from kneo.runtime.steps.threads import in_thread
from kneo.spec.models.spec import Tool
from kneo.tools import CallNext, FunctionTool, Handler, Middleware, ToolContext, ToolRegistry


class PythonTools:
    """Calls Python functions for agents.

    An asynchronous function runs on the event loop, any other one in a thread. With ``timeout_seconds`` a function of a module
    runs in a child process, which can be killed; a thread cannot.

    Args:
        code: The modules that specs may name.
        children: The child processes.
        registry: The tools that the program registered.
    """

    def __init__(self, code: CodeLoader, children: ChildProcesses, registry: ToolRegistry | None = None) -> None:
        self._code, self._children = code, children
        self._registry = registry or ToolRegistry()

    def registered(self, name: str) -> Tool | None:
        """Return a tool of the registry as a spec would declare it."""
        if name not in self._registry.names:
            return None
        definition = self._registry.get(name).definition
        return Tool(description=definition.description, parameters=dict(definition.parameters))

    async def call(self, call: ToolCall) -> object:
        """Call the function of a tool; a cancellation kills its child process, or abandons its thread.

        Raises:
            NotFound: ``tool_not_found``: the tool names no function, and the registry has none of its name.
            Forbidden: the module may not be named, is not the pinned one, or the tool lacks a gate that its function declares.
            Exception: the function raised it.
        """
        context = context_of(call)
        implementation = call.tool.implementation
        if implementation is None:
            function: Handler = self._registry.get(call.name).handler
            check_review(function, call)
            return await self._call(function, call, context)
        pins = call.turn.implementations
        function = self._code.load(implementation, pins).function
        check_review(function, call)
        if call.tool.timeout_seconds is None or is_async_tool(function):
            return await self._call(function, call, context)
        try:
            return await self._children.call_tool(implementation, call.arguments, context, pins)
        except ChildFailed as error:
            raise KneoError(str(error), code=error.kind) from None

    @staticmethod
    async def _call(function: Handler, call: ToolCall, context: ToolContext) -> object:
        if is_async_tool(function):
            result = call_tool(function, call.arguments, context)
        else:
            result = await in_thread(partial(call_tool, function, call.arguments, context))
        if inspect.isawaitable(result):
            result = await await_tool(result)
        return bounded_result(result)


def context_of(call: ToolCall) -> ToolContext:
    """Return the context of a call, for functions of the program."""
    return ToolContext(
        run_id=call.turn.run_id,
        step_id=call.turn.step_id,
        agent=call.turn.agent_name,
        tool=call.name,
        idempotency_key=call.idempotency_key,
    )


def check_review(function: Handler, call: ToolCall) -> None:
    """Refuse a function that declares gates which the tool of the spec does not have.

    Raises:
        Forbidden: ``tool_review_missing``.
    """
    declared = call.tool.review.gates() if call.tool.review is not None else {}
    missing = [
        place for place in (function.review if isinstance(function, FunctionTool) else ()) if place not in declared
    ]
    if missing:
        msg = f"The function of the tool {call.name} requires a person ({', '.join(missing)}), and the spec has no such gate."
        hint = f"Declare tools.{call.name}.review.{missing[0]} in the spec."
        raise Forbidden(msg, code="tool_review_missing", hint=hint)


class MiddlewareTools:
    """A backend of tools inside the middleware that the agent of a call names.

    Args:
        backend: Makes the calls.
        middleware: The middleware of the process, by name.
    """

    def __init__(self, backend: ToolBackend, middleware: Mapping[str, Middleware]) -> None:
        self._backend, self._middleware = backend, middleware

    async def call(self, call: ToolCall) -> object:
        """Make a call inside its middleware, the first of which is outermost.

        Raises:
            AnswerRequired: the tool needs an answer of a person, whatever the middleware returned.
            Exception: the call or a middleware failed.
        """
        names = [name for name in call.turn.agent.middleware if name in self._middleware]
        if not names:
            return await self._backend.call(call)
        inner = _SingleCall(self._backend, call)
        call_next: CallNext = inner.make
        for name in reversed(names):
            call_next = partial(self._middleware[name], context_of(call), dict(call.arguments), call_next)
        result = await call_next()
        if inner.question is not None:
            raise inner.question
        return result


class _SingleCall:
    """A call that is made once: a middleware that repeats it could repeat its effect."""

    def __init__(self, backend: ToolBackend, call: ToolCall) -> None:
        self._backend, self._call, self._is_made = backend, call, False
        self.question: AnswerRequired | None = None

    async def make(self) -> object:
        if self._is_made:
            msg = f"A middleware makes the call of {self._call.name} a second time."
            raise RuntimeError(msg)
        self._is_made = True
        try:
            return await self._backend.call(self._call)
        except AnswerRequired as question:
            self.question = question
            raise
