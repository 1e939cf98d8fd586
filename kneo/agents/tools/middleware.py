"""The middleware of a program around the turns of agents, and around calls of tools of each kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from kneo.agents.function_tools import CallNext, Middleware, TurnContext, TurnMiddleware
from kneo.agents.turn import AnswerRequired, ToolBackend, ToolCall, Turn, TurnResult
from kneo.errors import Invalid
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


async def take_inside(
    turn: Turn, middleware: Mapping[str, TurnMiddleware], take: Callable[[], Awaitable[TurnResult]]
) -> TurnResult:
    """Take a turn inside the middleware that its agent names, the first of which is outermost.

    Args:
        turn: The turn.
        middleware: The middleware around turns that the process registered, by name.
        take: Takes the turn.

    Raises:
        Invalid: ``middleware_failed``: a middleware returned without the agent's answer.
        BaseException: the turn or a middleware raised it; one of the turn is raised whatever the middleware did with it.
    """
    names = [name for name in turn.agent.middleware if name in middleware]
    if not names:
        return await take()
    inner = _SingleTurn(take)
    context = TurnContext(run_id=turn.run_id, step_id=turn.step_id, agent=turn.agent_name)
    call_next: Callable[[], Awaitable[str]] = inner.take
    for name in reversed(names):
        call_next = partial(_answer_of, name, middleware[name], context, call_next)
    try:
        await call_next()
    finally:
        # An outcome of the turn cannot be caught: what waits for a person waits, and what a guardrail blocks is blocked.
        if inner.error is not None:
            raise inner.error
    assert inner.result is not None
    return inner.result


async def _answer_of(
    name: str, middleware: TurnMiddleware, context: TurnContext, call_next: Callable[[], Awaitable[str]]
) -> str:
    """Return the answer inside a middleware, which has to let the turn be taken."""
    answers: list[str] = []

    async def noted() -> str:
        answers.append(await call_next())
        return answers[0]

    await middleware(context, noted)
    if not answers:
        msg = f"The middleware {name} of the agent {context.agent} returned without the agent's answer."
        raise Invalid(msg, code="middleware_failed", hint="Await call_next(), or raise to fail the step.")
    return answers[0]


class _SingleTurn:
    """A turn that is taken once."""

    def __init__(self, take: Callable[[], Awaitable[TurnResult]]) -> None:
        self._take, self._is_taken = take, False
        self.result: TurnResult | None = None
        self.error: BaseException | None = None

    async def take(self) -> str:
        if self._is_taken:
            msg = "A middleware takes the turn of its agent a second time."
            raise RuntimeError(msg)
        self._is_taken = True
        try:
            self.result = await self._take()
        except BaseException as error:
            self.error = error
            raise
        return self.result.text
