"""Middleware around the runs of a workflow as an agent: to log, to check, or to answer instead of the workflow."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

from kneo.errors import Usage
from kneo.sdk.messages import Message, RunConfig, RunResult


@dataclass
class AgentRunContext:
    """One call of an agent; middleware may replace its messages and its configuration.

    Attributes:
        run_id: The run that is resumed; ``None`` where a run begins.
        metadata: Values that middleware passes on to other middleware.
    """

    agent_name: str
    messages: Sequence[Message]
    run_config: RunConfig
    run_id: str | None = None
    metadata: dict[str, object] = field(default_factory=dict)

    @property
    def user_message(self) -> str | None:
        """The text of the last message."""
        return self.messages[-1].content if self.messages else None


RunHandler: TypeAlias = Callable[[AgentRunContext], Awaitable[RunResult]]
"""The next middleware, or the run itself."""


class WrapsRuns(Protocol):
    """An object with the hook of run middleware."""

    async def wrap_run(self, context: AgentRunContext, handler: RunHandler) -> RunResult: ...


RunHook: TypeAlias = Callable[[AgentRunContext, RunHandler], Awaitable[RunResult]]

RunMiddleware: TypeAlias = WrapsRuns | RunHook
"""An object with ``wrap_run(context, handler)``, or such a function; async."""


class BaseAgentMiddleware:
    """A middleware that passes runs on; override ``wrap_run``."""

    async def wrap_run(self, context: AgentRunContext, handler: RunHandler) -> RunResult:
        """Run what is inside, and return its result or another one."""
        return await handler(context)


OTHER_HOOKS = ("wrap_model_call", "wrap_tool_call", "wrap_stream")


def hook_of(middleware: RunMiddleware) -> RunHook:
    """Return the function of a middleware around runs.

    Raises:
        Usage: the middleware has hooks of model calls, tool calls or streams, or none of runs.
    """
    name = str(getattr(middleware, "__name__", type(middleware).__name__))
    others = [hook for hook in OTHER_HOOKS if hasattr(middleware, hook)]
    if others:
        msg = f"The middleware {name} has {', '.join(others)}, which would never be called around a workflow."
        hint = "For tool calls, list an async function(context, arguments, call_next) under the agent's middleware."
        raise Usage(msg, hint=hint)
    hook: object = getattr(middleware, "wrap_run", middleware)
    called = hook if inspect.isroutine(hook) else getattr(hook, "__call__", None)  # noqa: B004 - an object may be async
    if not inspect.iscoroutinefunction(called):
        msg = f"The middleware {name} has no async wrap_run(context, handler)."
        raise Usage(msg)
    return cast("RunHook", hook)


async def dispatch(hooks: Sequence[RunHook], context: AgentRunContext, terminal: RunHandler) -> RunResult:
    """Run inside all middleware; the first is the outermost.

    Raises:
        TypeError: a middleware returns no RunResult.
    """
    if not hooks:
        return await terminal(context)
    first, *others = hooks
    result = await first(context, lambda inner: dispatch(others, inner, terminal))
    if not isinstance(result, RunResult):
        msg = f"A middleware of {context.agent_name} returned {type(result).__name__}; expected a RunResult."
        raise TypeError(msg)
    return result
