"""The middleware around calls of tools, whatever their kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from kneo.agents.function_tools import CallNext, Middleware
from kneo.agents.turn import AnswerRequired, ToolBackend, ToolCall
from kneo.function_context import ToolContext


def context_of(call: ToolCall) -> ToolContext:
    """Return the context of a call, for functions of the program."""
    return ToolContext(
        run_id=call.turn.run_id,
        step_id=call.turn.step_id,
        agent=call.turn.agent_name,
        tool=call.name,
        idempotency_key=call.idempotency_key,
    )


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
