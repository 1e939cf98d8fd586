"""How each kind of step does its work: text in, text out, or an exception that becomes the step's error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from kneo.runtime.code import CodeLoader
from kneo.runtime.interpret.node import Leaf
from kneo.runtime.program import Program
from kneo.runtime.steps import agent, function
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.runtime.steps.call import Signature
from kneo.runtime.steps.children import Children
from kneo.spec.models.spec import FunctionComponent

Call = Callable[[str, StepContext], StepOutput]
"""What a step does, where any thread may do it."""

Runner = Callable[["Executor", Program, Leaf, str, StepContext], Awaitable[StepOutput]]


class Executor:
    """Runs steps. Knows nothing of runs, stores or fences."""

    def __init__(self, code: CodeLoader) -> None:
        self.code = code
        self.children = Children(code)

    async def execute(self, program: Program, leaf: Leaf, text: str, context: StepContext) -> StepOutput:
        """Do a step's work.

        Raises:
            TimeoutError: it took longer than the step allows.
            Exception: whatever else went wrong; the step failed.
        """
        return await RUNNERS[leaf.kind](self, program, leaf, text, context)

    def plain(self, program: Program, leaf: Leaf, pins: Mapping[str, str]) -> Call | None:
        """Return what a step calls when it is a plain function that may take as long as it likes.

        ``None`` where it is something else, or is not to be had: then ``execute`` says why.
        """
        if leaf.kind != "function" or leaf.timeout_seconds is not None:
            return None
        declared = program.functions[leaf.ref]
        return function.plain(self.code, declared.implementation, pins, _signature(declared))

    async def close(self) -> None:
        """End what was kept for later steps."""
        await self.children.close()


async def _agent(_executor: Executor, program: Program, leaf: Leaf, text: str, context: StepContext) -> StepOutput:
    async with asyncio.timeout(leaf.timeout_seconds):
        return await agent.run(leaf.ref or program.agent_name, program.agents[leaf.ref], text, context)


async def _function(executor: Executor, program: Program, leaf: Leaf, text: str, context: StepContext) -> StepOutput:
    declared = program.functions[leaf.ref]
    return await function.run(
        executor.children, declared.implementation, text, context, _signature(declared), leaf.timeout_seconds
    )


def _signature(declared: FunctionComponent) -> Signature:
    return Signature(takes=declared.input_schema, returns=declared.output_schema)


RUNNERS: Mapping[str, Runner] = {"agent": _agent, "guardrail": _agent, "function": _function}
