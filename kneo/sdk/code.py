"""Steps whose code is an object of this process, where a spec would name a module."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping

from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.context import StepContext, StepOutput
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.threads import in_thread
from kneo.sdk.waiting import begin_place
from kneo.store.engine import Store

Work = Callable[[str, StepContext], Awaitable[StepOutput]]
"""What a step does: text and context in, text out."""


class InProcess(Executor):
    """Runs steps of this process's own objects, and all others as every executor does.

    Args:
        work: What to do, by the implementation that the spec names.
        began: Told of every such step that begins.
        store: Where their runs are.
    """

    def __init__(self, work: Mapping[str, Work], began: Callable[[Activity, StepContext], None], store: Store) -> None:
        super().__init__(CodeLoader((), ()))
        self.work = work
        self.began = began
        self.store = store

    def plain(self, program: Program, activity: Activity, pins: Mapping[str, str]) -> None:
        """Nothing: whoever wants to know is told of each step that begins, and this program's own are async."""

    async def execute(self, program: Program, activity: Activity, text: str, context: StepContext) -> StepOutput:
        self.began(activity, context)
        work = self.work.get(program.functions[activity.ref].implementation) if activity.kind == "function" else None
        if work is None:
            return await super().execute(program, activity, text, context)
        begin_place(context, self.store)  # each step is a task of its own, so nobody else sees it
        try:
            async with asyncio.timeout(activity.timeout_seconds):
                return await work(text, context)
        except (asyncio.CancelledError, TimeoutError):
            context.token.cancel()
            raise


async def call(function: Callable[..., object], *arguments: object) -> object:
    """Call something that may be async; what is not runs beside the event loop, so that it holds nobody up."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    around = contextvars.copy_context()
    result = await in_thread(lambda: around.run(function, *arguments))
    return await result if inspect.isawaitable(result) else result
