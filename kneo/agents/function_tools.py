"""Tools that are Python functions: their registry in a program that embeds Kneo, their context and their result."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import re
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from kneo.errors import Conflict, Invalid, NotFound
from kneo.function_context import (
    BY_NAME,
    BindsArguments,
    ToolContext,
    ToolResult,
    bind_arguments,
    named_arguments,
    parameters_of,
)
from kneo.spec.json_schema import find_flaws

__all__ = [
    "BY_NAME",
    "CallNext",
    "FunctionTool",
    "Handler",
    "Middleware",
    "RegisteredTool",
    "TakeNext",
    "ToolContext",
    "ToolDefinition",
    "ToolRegistry",
    "ToolResult",
    "TurnContext",
    "TurnMiddleware",
]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


Handler = Callable[..., object]
"""A function from a map of arguments to a text or any JSON value, sync or async; or a ``FunctionTool``.

Parameters named ``key`` and ``context`` receive the idempotency key and the ``ToolContext`` of the call.
"""


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """The description of a tool for models. ``parameters`` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=lambda: {"type": "object", "properties": {}})


class FunctionTool(BindsArguments):
    """A function whose parameters are the arguments of a tool. Called, it is the function itself.

    Args:
        function: The function, sync or async.
        name: The tool's name; default: the function's.
        description: For the model; default: the function's docstring.
        review: The gates at its calls, as a spec has them under ``review``. A spec that uses the tool has to declare them.
        optional: Parameters that need not be among the arguments of the model, because people fill them in.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        description: str | None = None,
        review: Mapping[str, object] | None = None,
        optional: frozenset[str] = frozenset(),
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.review = review or {}
        self._arguments = _arguments_model(function)
        schema = self._arguments.model_json_schema()
        required = [each for each in schema.get("required", ()) if each not in optional]
        self.definition = ToolDefinition(
            name=name or str(getattr(function, "__name__", "tool")),
            description=description or inspect.getdoc(function) or "",
            parameters={**schema, "required": required} if required else _without(schema, "required"),
        )

    def __call__(self, *arguments: object, **named: object) -> object:
        return self.function(*arguments, **named)

    def bind(self, arguments: Mapping[str, object], context: ToolContext) -> dict[str, object]:
        """Return the function's arguments, converted to the types of its parameters.

        Raises:
            ValueError: an argument is missing or does not fit.
        """
        values = self._arguments.model_validate(dict(arguments))
        found = {name: getattr(values, name) for name in values.model_fields_set}
        return found | named_arguments(parameters_of(self.function) or (), context)


def _arguments_model(function: Callable[..., object]) -> type[BaseModel]:
    """Return the model of a function's arguments.

    Raises:
        TypeError: the function has positional-only or variadic parameters.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in BY_NAME:
            continue
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            msg = f"The parameter {parameter.name} of {function} cannot be passed by its name."
            raise TypeError(msg)
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), Field(default=default))
    return create_model(str(getattr(function, "__name__", "tool")), __config__=ConfigDict(extra="forbid"), **fields)


def _without(schema: Mapping[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in schema.items() if name != key}


CallNext = Callable[[], Awaitable[object]]
"""Makes the call of a tool, once, and returns its result."""

Middleware = Callable[[ToolContext, Mapping[str, object], CallNext], Awaitable[object]]
"""A function around tool calls, from the context, the arguments and the call to the result.

It returns the result of the call or another one, and may raise instead of making the call. It cannot change the arguments, which
people may have approved.
"""


@dataclass(frozen=True, kw_only=True)
class TurnContext:
    """The turn of an agent that a middleware stands around. A step that paused has one turn for each time it continues."""

    run_id: str
    step_id: str
    agent: str


TakeNext = Callable[[], Awaitable[str]]
"""Takes the turn of an agent, once, and returns its answer."""

TurnMiddleware = Callable[[TurnContext, TakeNext], Awaitable[None]]
"""A function around the turns of an agent, to measure, to limit or to refuse.

It awaits the turn or raises. It cannot change the answer, which has passed the agent's guardrails.
"""


@dataclass(frozen=True)
class RegisteredTool:
    definition: ToolDefinition
    handler: Handler


class ToolRegistry:
    """The tools of a process, by name, and the middleware of agents. A spec overrides parts of a tool's definition."""

    def __init__(self) -> None:
        self._tools: dict[str, RegisteredTool] = {}
        self._middleware: dict[str, Middleware] = {}
        self._turn_middleware: dict[str, TurnMiddleware] = {}

    def use(self, name: str, middleware: Middleware) -> None:
        """Add a middleware around tool calls, for agents whose spec names it.

        Raises:
            Invalid: the name is not valid, or the function is not asynchronous.
            Conflict: a middleware has that name.
        """
        self._check_middleware(name, middleware, "context, arguments, call_next")
        self._middleware[name] = middleware

    def use_around_turns(self, name: str, middleware: TurnMiddleware) -> None:
        """Add a middleware around turns, for agents whose spec names it; raises what ``use`` raises."""
        self._check_middleware(name, middleware, "context, call_next")
        self._turn_middleware[name] = middleware

    def _check_middleware(self, name: str, middleware: object, parameters: str) -> None:
        if not _NAME.fullmatch(name):
            msg = f"{name[:100]!r} is not a name of a middleware; use letters, digits, dots, dashes and underscores."
            raise Invalid(msg)
        call = (
            middleware if inspect.isfunction(middleware) or inspect.ismethod(middleware) else type(middleware).__call__
        )
        if not inspect.iscoroutinefunction(call):
            msg = f"The middleware {name} is not an asynchronous function."
            raise Invalid(msg, hint=f"Write it as async def middleware({parameters}): …")
        if name in self._middleware or name in self._turn_middleware:
            msg = f"The middleware {name} is registered already."
            raise Conflict(msg)

    @property
    def middleware(self) -> Mapping[str, Middleware]:
        """The middleware around tool calls by name."""
        return MappingProxyType(self._middleware)

    @property
    def turn_middleware(self) -> Mapping[str, TurnMiddleware]:
        """The middleware around turns by name."""
        return MappingProxyType(self._turn_middleware)

    @property
    def middleware_names(self) -> frozenset[str]:
        """The names that agents can have under ``middleware``."""
        return frozenset({**self._middleware, **self._turn_middleware})

    def register(self, definition: ToolDefinition, handler: Handler) -> None:
        """Add a tool.

        Raises:
            Invalid: the name, or the schema of the arguments, is not valid.
            Conflict: a tool has that name.
        """
        if not _NAME.fullmatch(definition.name):
            msg = (
                f"{definition.name[:100]!r} is not a name of a tool; use letters, digits, dots, dashes and underscores."
            )
            raise Invalid(msg)
        flaws = find_flaws(definition.parameters)
        if flaws:
            msg = f"The parameters of the tool {definition.name} are not a usable JSON Schema. {flaws[0]}"
            raise Invalid(msg)
        if definition.name in self._tools:
            msg = f"The tool {definition.name} is registered already."
            raise Conflict(msg)
        self._tools[definition.name] = RegisteredTool(definition, handler)

    def add(self, tool: FunctionTool) -> None:
        """Add a function as a tool; raises what ``register`` raises."""
        self.register(tool.definition, tool)

    def get(self, name: str) -> RegisteredTool:
        """Return a tool.

        Raises:
            NotFound: no tool has that name.
        """
        if name not in self._tools:
            msg = f"Tool {name[:100]!r} has no implementation."
            raise NotFound(msg, code="tool_not_found", hint=f"Registered: {', '.join(self._tools) or 'none'}.")
        return self._tools[name]

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool outside of any run, without the checks that an agent's calls pass.

        Raises:
            NotFound: no tool has that name.
        """
        handler = self.get(name).handler
        context = ToolContext(run_id="", step_id="", agent="", tool=name, idempotency_key="")
        positional, named = bind_arguments(handler, parameters_of(handler), arguments, context)
        output = handler(*positional, **named)
        if inspect.isawaitable(output):
            output = asyncio.run(_await(output))
        if isinstance(output, ToolResult):
            return output
        return ToolResult(name=name, output=output if isinstance(output, str) else json.dumps(output))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tools)

    def __iter__(self) -> Iterator[RegisteredTool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)


async def _await(output: Awaitable[object]) -> object:
    return await output
