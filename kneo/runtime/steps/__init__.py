"""How each kind of step does its work: text in, text out, or an exception that becomes the step's error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from kneo.runtime.code import CodeLoader
from kneo.runtime.program import Leaf, Program
from kneo.runtime.steps import agent, function
from kneo.runtime.steps.base import StepContext, StepOutput

Runner = Callable[["Executor", Program, Leaf, str, StepContext], Awaitable[StepOutput]]


@dataclass(frozen=True)
class Executor:
    """Runs steps. Knows nothing of runs, stores or fences."""

    code: CodeLoader

    async def execute(self, program: Program, leaf: Leaf, text: str, context: StepContext) -> StepOutput:
        return await RUNNERS[leaf.kind](self, program, leaf, text, context)


async def _agent(_executor: Executor, program: Program, leaf: Leaf, text: str, _context: StepContext) -> StepOutput:
    return await agent.run(leaf.ref or program.agent_name, program.agents[leaf.ref], text)


async def _function(executor: Executor, program: Program, leaf: Leaf, text: str, context: StepContext) -> StepOutput:
    code = executor.code.load(program.functions[leaf.ref])
    return await function.run(code, text, context, timeout_seconds=leaf.timeout_seconds)


RUNNERS: Mapping[str, Runner] = {"agent": _agent, "function": _function}
