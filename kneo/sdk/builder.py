"""The builder of specs for workflows written in Python, and the execution of their steps in this process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from inspect import isawaitable, iscoroutinefunction
from typing import TypeAlias, cast

from kneo.embed.database import RunDatabase
from kneo.embed.runs import Began, RunHost, RunSnapshot, Work, no_listener
from kneo.embed.steps import INPROCESS, StepContext, in_thread
from kneo.errors import Conflict, Usage
from kneo.spec.models.agent import Agent
from kneo.tools import FunctionTool, Middleware, RegisteredTool, ToolRegistry

Json: TypeAlias = dict[str, object]

TURN_PARAMETERS = 2
"""The parameters of a middleware around turns: the context and the turn."""


class SpecBuilder:
    """A spec under construction, with the functions that its steps call in this process.

    Attributes:
        components: The components of the spec by section and name.
        work: Step functions by the implementation that the spec names.
        tools: The tools of its agents in this process.
        tree: The finished spec.
        host: The database of the workflow's runs, once ``open`` has set it.
    """

    host: RunHost
    tree: Json

    def __init__(self) -> None:
        self.components: dict[str, Json] = {"agents": {}, "functions": {}, "humans": {}, "workflows": {}}
        self.work: dict[str, Work] = {}
        self.tools = ToolRegistry()

    def function(self, path: str, work: Work) -> str:
        """Add the function of a step; return the name of its component."""
        # The name comes from the path, not from a number: a paused run finds its steps after other steps were added.
        implementation = INPROCESS + identifier(path)
        self.components["functions"][path] = {"implementation": implementation}
        self.work[implementation] = work
        return path

    def agent(self, path: str, name: str, agent: Agent | Mapping[str, object]) -> str:
        """Add an agent of the spec language; return the name of its component.

        Functions among its tools become tools of the spec, with the gates that their decorators declare. Functions among its
        middleware run around its turns or its tool calls.

        Raises:
            Conflict: two different tools have one name.
        """
        tree = dict(agent.model_dump(by_alias=True, exclude_unset=True) if isinstance(agent, Agent) else agent)
        selected = tree.get("tools")
        if isinstance(selected, Mapping):
            tree["tools"] = {**selected, "include": [self._tool(each) for each in selected.get("include", ())]}
        elif isinstance(selected, list | tuple):
            tree["tools"] = {"include": [self._tool(each) for each in selected]}
        if tree.get("middleware"):
            tree["middleware"] = [self._middleware(each) for each in tree["middleware"]]
        self.components["agents"][path] = {"name": name, **tree}
        return path

    def _middleware(self, middleware: object) -> str:
        """Return the name of a middleware; a function is registered: of two parameters around turns, of three around tool calls.

        Raises:
            Conflict: two different ones have one name.
            Invalid: it is not an asynchronous function.
        """
        if isinstance(middleware, str):
            return middleware
        name = str(getattr(middleware, "__name__", type(middleware).__name__))
        known = {**self.tools.middleware, **self.tools.turn_middleware}
        if known.get(name) is not middleware:
            if callable(middleware) and len(inspect.signature(middleware).parameters) == TURN_PARAMETERS:
                self.tools.use_around_turns(name, middleware)
            else:
                self.tools.use(name, cast("Middleware", middleware))
        return name

    def _tool(self, tool: object) -> str:
        """Return the name of a tool; a function is registered."""
        if isinstance(tool, str):
            return tool
        made = tool if isinstance(tool, FunctionTool) else None
        if made is None and callable(tool):
            made = FunctionTool(tool)
        if made is None:
            msg = f"{type(tool).__name__} is no tool; pass a function, one decorated with @tool, or a name."
            raise TypeError(msg)
        name = made.definition.name
        known = self.tools.get(name).handler if name in self.tools.names else None
        if known is None:
            self.tools.add(made)
        elif known is not made and getattr(known, "function", None) is not made.function:
            msg = f"Two tools are called {name}."
            raise Conflict(msg)
        return name

    def finish(self, name: str, workflow: Mapping[str, object], **agent: object) -> Mapping[str, object]:
        """Return the spec of a workflow with the components added so far."""
        components = {section: entries for section, entries in self.components.items() if entries}
        self.tree = {"agent": {"name": name, **agent}, "workflow": workflow, "components": components}
        if self.tools:
            self.tree["tools"] = {tool.definition.name: _declaration(tool) for tool in self.tools}
        return self.tree

    async def read(self, context: StepContext) -> RunSnapshot:
        """Read the run of a step."""
        return await asyncio.to_thread(self.host.snapshot, context.run_id)

    def open(self, database: RunDatabase, began: Began = no_listener) -> None:
        """Connect the workflow to the database of its runs."""
        self.host = RunHost(database, self.work, self.tools, began, tuple(self.components["functions"]))


def _declaration(tool: RegisteredTool) -> Json:
    """Return a tool of this process as a spec declares it."""
    review = tool.handler.review if isinstance(tool.handler, FunctionTool) else {}
    definition = tool.definition
    return {
        "description": definition.description or definition.name,
        "parameters": dict(definition.parameters),
        **({"review": dict(review)} if review else {}),
    }


async def call(function: Callable[..., object], *arguments: object) -> object:
    """Call a function that may be async; a sync function runs in a thread, so that it does not block the event loop."""
    if iscoroutinefunction(function):
        return await function(*arguments)
    result = await in_thread(partial(function, *arguments))
    return await result if isawaitable(result) else result


def check_parameters(function: object, arguments: Sequence[str], who: str) -> None:
    """Check that a function of a program can be called with these positional arguments.

    Raises:
        Usage: it cannot; the message has its parameters.
    """
    if not callable(function):
        msg = f"{who} is {type(function).__name__}, which cannot be called."
        raise Usage(msg, hint=f"Pass a function of ({', '.join(arguments)}).")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        msg = f"{who} takes ({', '.join(signature.parameters)}), and is called with ({', '.join(arguments)})."
        hint = f"Pass a function of ({', '.join(arguments)}), which may call another one."
        raise Usage(msg, hint=hint) from None


def identifier(path: str) -> str:
    """Convert a path to a Python name; different paths have different names."""
    plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in path)
    return f"{plain}_{sha256(path.encode()).hexdigest()[:8]}"
