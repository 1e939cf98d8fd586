"""The functions that tools name, in this process and in child processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from kneo.agents.function_tools import Handler
from kneo.errors import KneoError
from kneo.function_context import ToolContext
from kneo.runtime.steps.child_process import ChildProcesses
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.threads import in_thread
from kneo.sandbox.processes import ChildFailed
from kneo.spec.code import RunCode


class ToolFunctions:
    """Loads functions, and calls them in threads and in child processes.

    Args:
        code: The modules that specs may name.
        children: The child processes.
    """

    def __init__(self, code: CodeLoader, children: ChildProcesses) -> None:
        self._code, self._children = code, children

    def load(self, implementation: str, code: RunCode) -> Handler:
        """Load a function; raises what ``CodeLoader.load`` raises."""
        return self._code.load(implementation, code.pins).function

    async def in_thread(self, work: Callable[[], object]) -> object:
        """Do work in a thread of its own."""
        return await in_thread(work)

    async def call_in_child(
        self,
        implementation: str,
        arguments: Mapping[str, object],
        context: ToolContext,
        code: RunCode,
        gates: Collection[str],
    ) -> object:
        """Call a function in a child process.

        Raises:
            KneoError: the function raised, or took the process down with it.
        """
        try:
            return await self._children.call_tool(implementation, arguments, context, code, gates)
        except ChildFailed as error:
            raise KneoError(str(error), code=error.kind) from None
