"""The builder of specs for workflows written in Python, and the execution of their steps in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from inspect import isawaitable, iscoroutinefunction
from typing import TypeAlias

from kneo.runtime.steps.code import INPROCESS
from kneo.runtime.steps.threads import in_thread
from kneo.sdk.db import RunDatabase
from kneo.sdk.host import Began, RunHost, Work, no_listener
from kneo.spec.models.agent import Agent

Json: TypeAlias = dict[str, object]


class SpecBuilder:
    """A spec under construction, with the functions that its steps call in this process.

    Attributes:
        components: The components of the spec by section and name.
        work: Step functions by the implementation that the spec names.
        tree: The finished spec.
        host: The database of the workflow's runs, once ``open`` has set it.
    """

    host: RunHost
    tree: Mapping[str, object]

    def __init__(self) -> None:
        self.components: dict[str, Json] = {"agents": {}, "functions": {}, "humans": {}, "workflows": {}}
        self.work: dict[str, Work] = {}

    def function(self, path: str, work: Work) -> str:
        """Add the function of a step; return the name of its component."""
        # The name comes from the path, not from a number: a paused run finds its steps after other steps were added.
        implementation = INPROCESS + identifier(path)
        self.components["functions"][path] = {"implementation": implementation}
        self.work[implementation] = work
        return path

    def agent(self, path: str, name: str, agent: Agent | Mapping[str, object]) -> str:
        """Add an agent of the spec language; return the name of its component."""
        tree = agent.model_dump(by_alias=True, exclude_unset=True) if isinstance(agent, Agent) else agent
        self.components["agents"][path] = {"name": name, **tree}
        return path

    def finish(self, name: str, workflow: Mapping[str, object], **agent: object) -> Mapping[str, object]:
        """Return the spec of a workflow with the components added so far."""
        components = {section: entries for section, entries in self.components.items() if entries}
        self.tree = {"agent": {"name": name, **agent}, "workflow": workflow, "components": components}
        return self.tree

    def open(self, database: RunDatabase, began: Began = no_listener) -> None:
        """Connect the workflow to the database of its runs."""
        self.host = RunHost(database, self.work, began)


async def call(function: Callable[..., object], *arguments: object) -> object:
    """Call a function that may be async; a sync function runs in a thread, so that it does not block the event loop."""
    if iscoroutinefunction(function):
        return await function(*arguments)
    result = await in_thread(partial(function, *arguments))
    return await result if isawaitable(result) else result


def identifier(path: str) -> str:
    """Convert a path to a Python name; different paths have different names."""
    plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in path)
    return f"{plain}_{sha256(path.encode()).hexdigest()[:8]}"
