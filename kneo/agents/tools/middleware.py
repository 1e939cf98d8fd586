"""The middleware of a program around turns of agents and calls of tools, and the filter of secrets around the backends of tools."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from kneo.agents.function_tools import CallNext, Middleware, TurnContext, TurnMiddleware
from kneo.agents.secrets import CallSecrets
from kneo.agents.turn import AnswerRequired, ToolBackend, ToolCall, Turn, TurnResult
from kneo.errors import Invalid, KneoError
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


MAX_PROMPT_CHARS = 4_000
"""Characters of a tool's own question that are shown. The prompt is cut here, because half a secret is not recognized."""


class SecretFilter:
    """A backend of tools whose results, errors and questions are without the secrets of their call.

    Models, conversations, middleware, traces and people receive nothing of a call in another way.

    Args:
        backend: Makes the calls, and adds the secrets that it takes to those of the call.
    """

    def __init__(self, backend: ToolBackend) -> None:
        self._backend = backend

    async def call(self, call: ToolCall) -> object:
        """Make a call; raises what the backend raises, without the secrets."""
        secrets = CallSecrets()
        try:
            return secrets.hide(await self._backend.call(replace(call, secrets=secrets)))
        except AnswerRequired as question:
            prompt, schema = secrets.hide_text(question.prompt), secrets.hide_fields(question.schema)
            shown = AnswerRequired(prompt[:MAX_PROMPT_CHARS], schema, question.state, restarted=question.restarted)
            raise shown from None
        except Exception as error:  # noqa: BLE001 - each leaves as it is, without the secrets
            raise hide_in_error(error, secrets) from None


_INPUT = re.compile(r", input_value=.*?(?=, input_type=|$)", re.DOTALL)
"""The part of a message of pydantic that repeats the beginning and the end of what it refused: half a secret is not recognized."""


def hide_in_error(error: Exception, secrets: CallSecrets) -> Exception:
    """Return an error without secrets; one of another library whose text has a secret becomes one of Kneo."""
    if not secrets:
        return error
    if isinstance(error, KneoError):
        error.message = secrets.hide_text(_INPUT.sub("", error.message))
        error.hint = secrets.hide_text(error.hint) if error.hint is not None else None
        error.details = secrets.hide_fields(error.details)
        error.args = (error.message,)
        return error
    shown = secrets.hide_text(_INPUT.sub("", str(error)))
    return error if shown == str(error) else KneoError(shown, code=type(error).__name__)
