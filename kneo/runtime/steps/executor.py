"""The executor: how a step of each kind does its work. Text in, text out, or an exception that becomes the step's error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import replace
from functools import partial

from kneo.errors import Invalid
from kneo.function_context import CancelToken, StepContext, WaitForAnswer
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Agents, Conversation, MakeServices
from kneo.runtime.steps.child_process import ChildProcesses
from kneo.runtime.steps.code import Code, CodeLoader
from kneo.runtime.steps.code_store import CodeStore
from kneo.runtime.steps.functions import (
    FunctionSchemas,
    StepOutput,
    as_text,
    call,
    call_for_value,
    check_value,
    is_async,
)
from kneo.runtime.steps.threads import in_thread
from kneo.spec.code import RunCode
from kneo.spec.models.spec import FunctionComponent

Call = Callable[[str, StepContext], StepOutput]
"""The work of a step that any thread can do."""


class Executor:
    """Executes activities. Knows nothing of runs, stores or fences."""

    def __init__(
        self, code: CodeLoader, make_services: MakeServices | None = None, store: CodeStore | None = None
    ) -> None:
        self.code = code
        self.children = ChildProcesses(code, store)
        self.agents = Agents(make_services)

    async def execute(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        """Do a step's work.

        Raises:
            TimeoutError: it took longer than the step allows.
            PeopleRequired, Postponed, Stopped: an agent cannot continue now; see ``kneo.agents.turn``.
            Exception: any other failure of the step.
        """
        if activity.kind == "function":
            declared, seconds = program.functions[activity.ref], activity.timeout_seconds
            return await self._call_function(declared, text, context, conversation.code, seconds)
        async with asyncio.timeout(activity.timeout_seconds):
            functions = partial(self._call_for_agent, program, context, conversation.code)
            load_code = partial(self._load_code, conversation.code)
            conversation = replace(conversation, functions=functions, load_code=load_code)
            return await self.agents.run(program, activity, text, context, conversation)

    def plain(self, program: Program, activity: Activity, run_code: RunCode) -> Call | None:
        """Return the call of a plain function without a time limit, for the thread that drives the run.

        ``None`` for every other activity, and where the code cannot be loaded: ``execute`` then raises the reason.
        """
        if activity.kind != "function" or activity.timeout_seconds is not None or run_code.digest is not None:
            return None
        declared = program.functions[activity.ref]
        try:
            code = self.code.load(declared.implementation, run_code.pins)
        except Exception:  # noqa: BLE001 - raised again by execute
            return None
        if is_async(code):
            return None
        schemas = _schemas(declared)
        # In a context of its own: a context variable that a step sets is not seen by later steps of the same thread.
        return lambda text, context: copy_context().run(_call, code, text, context, schemas)

    async def _load_code(self, run_code: RunCode, implementations: Collection[str]) -> None:
        """Load the code that an agent's step may call.

        Raises:
            Invalid, Forbidden, CodeUnavailable: it cannot be called in this process.
        """

        def load() -> None:
            for each in implementations:
                self.code.load(each, run_code.pins)

        if run_code.digest is not None:
            await self.children.load(implementations, run_code)
        elif all(map(self.code.is_loaded, implementations)):
            load()
        else:
            await in_thread(load)  # an import may take its time

    async def close(self) -> None:
        """End the child processes and the connections that are kept for later steps."""
        await self.agents.close()
        await self.children.close()

    async def _call_for_agent(
        self, program: Program, context: StepContext, run_code: RunCode, name: str, text: str
    ) -> object:
        """Call a function of the spec for an agent's guardrail or memory, and return a JSON value.

        Raises:
            Invalid: the spec has no such function, it asks a person, or its result is not JSON.
            Exception: the function raised it.
        """
        declared = program.spec.components.functions.get(name)
        if declared is None:
            msg = f"The function {name} is not in components.functions."
            raise Invalid(msg, code="spec_invalid")
        schemas = _schemas(declared)
        if run_code.digest is not None:
            own = replace(context, answers=())
            return await self.children.call_for_value(declared.implementation, text, own, run_code, schemas)
        code = self.code.load(declared.implementation, run_code.pins)
        own = replace(context, answers=(), token=CancelToken())
        try:
            if is_async(code):
                pending = call_for_value(code, text, own, schemas)
                assert asyncio.iscoroutine(pending)
                result = await pending
            else:
                result = await in_thread(partial(call_for_value, code, text, own, schemas))
        except asyncio.CancelledError:
            own.token.cancel()
            raise
        except (WaitForAnswer, SystemExit) as error:
            msg = f"The function {name} asks a person or ends its process, which it cannot do for an agent."
            raise Invalid(msg, code="function_output_invalid") from error
        return check_value(result, schemas)

    async def _call_function(
        self, declared: FunctionComponent, text: str, context: StepContext, run_code: RunCode, seconds: int | None
    ) -> StepOutput:
        """Call a function: of a bundle's code in a child process; of the project on the loop when it is async, else in a
        thread, or in a child process when it has a time limit.

        A child process can be killed; a thread cannot.
        """
        implementation, schemas = declared.implementation, _schemas(declared)
        if run_code.digest is not None:
            async with asyncio.timeout(seconds):
                return await self.children.call(implementation, text, context, run_code, schemas)
        code = self.code.load(implementation, run_code.pins)
        if is_async(code):
            async with asyncio.timeout(seconds):
                return await _await(code, text, context, schemas)
        if seconds is not None:
            async with asyncio.timeout(seconds):
                return await self.children.call(implementation, text, context, run_code, schemas)
        try:
            return await in_thread(partial(_call, code, text, context, schemas))
        except asyncio.CancelledError:
            context.token.cancel()
            raise


def _schemas(declared: FunctionComponent) -> FunctionSchemas:
    return FunctionSchemas(takes=declared.input_schema, returns=declared.output_schema)


def _call(code: Code, text: str, context: StepContext, schemas: FunctionSchemas) -> StepOutput:
    return StepOutput(text=call(code, text, context, schemas), code_digest=code.module_digest)


async def _await(code: Code, text: str, context: StepContext, schemas: FunctionSchemas) -> StepOutput:
    pending = call_for_value(code, text, context, schemas)
    assert asyncio.iscoroutine(pending)
    return StepOutput(text=as_text(await pending, schemas), code_digest=code.module_digest)
