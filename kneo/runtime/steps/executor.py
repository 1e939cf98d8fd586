"""The executor: how a step of each kind does its work. Text in, text out, or an exception that becomes the step's error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import replace
from functools import partial

from kneo.agents.secrets import CallSecrets
from kneo.errors import Invalid
from kneo.function_context import CancelToken, StepContext, WaitForAnswer, step_context_as_json
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Agents, Conversation, MakeServices
from kneo.runtime.steps.code import Code, CodeLoader
from kneo.runtime.steps.functions import (
    FunctionSchemas,
    StepOutput,
    as_text,
    call,
    call_for_value,
    check_input,
    check_value,
    is_async,
)
from kneo.runtime.steps.sandboxes import Called, FunctionUse, Sandboxes
from kneo.runtime.steps.threads import in_thread
from kneo.spec.code import RunCode
from kneo.spec.coverage.sandboxes import CodePart
from kneo.spec.models.spec import FunctionComponent, Spec

Call = Callable[[str, StepContext], StepOutput]
"""The work of a step that any thread can do."""


class Executor:
    """Executes activities. Knows nothing of runs, stores or fences."""

    def __init__(self, code: CodeLoader, sandboxes: Sandboxes, make_services: MakeServices | None = None) -> None:
        self.code, self.sandboxes = code, sandboxes
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
        await self._check_levels(program, conversation.environment)
        async with asyncio.timeout(activity.timeout_seconds):
            if activity.kind == "function":
                return await self._call_function(
                    activity.ref, program.functions[activity.ref], text, context, conversation
                )
            functions = partial(self._call_for_agent, program, context, conversation)
            load_code = partial(self._load_code, program.spec, conversation.code)
            conversation = replace(conversation, functions=functions, load_code=load_code)
            return await self.agents.run(program, activity, text, context, conversation)

    async def _check_levels(self, program: Program, environment: str | None) -> None:
        """Refuse a step where this machine cannot give the level of some part.

        Raises:
            Forbidden: ``sandbox_unavailable``.
        """
        await self.sandboxes.check_levels(program.inside, environment)

    def plain(self, program: Program, activity: Activity, run_code: RunCode, environment: str | None) -> Call | None:
        """Return the call of a plain function at level ``none``, for the thread that drives the run.

        ``None`` for every other activity, and where the rules cannot be read or the code cannot be loaded: ``execute`` then
        raises the reason.
        """
        if activity.kind != "function" or activity.timeout_seconds is not None or run_code.digest is not None:
            return None
        declared = program.functions[activity.ref]
        part = CodePart(name=activity.ref, sandbox=declared.sandbox)
        try:
            if not self.sandboxes.is_plain(part, program.inside, environment):
                return None
            code = self.code.load(declared.implementation, run_code.pins)
        except Exception:  # noqa: BLE001 - raised again by execute
            return None
        if is_async(code):
            return None
        schemas = _schemas(declared)
        # In a context of its own: a context variable that a step sets is not seen by later steps of the same thread.
        return lambda text, context: copy_context().run(_call, code, text, context, schemas)

    async def _load_code(self, spec: Spec, run_code: RunCode, implementations: Collection[str]) -> None:
        """Find the code that an agent's step may call, and the scripts of its spec.

        Raises:
            Invalid, Forbidden, CodeUnavailable: it cannot be called in this process.
        """

        def load() -> None:
            for each in implementations:
                self.code.source(each, run_code)
            for script in spec.scripts():
                self.code.script(script, spec, run_code)

        await in_thread(load)

    async def close(self) -> None:
        """End the processes of sandboxes and the connections that are kept for later steps."""
        await self.agents.close()
        await self.sandboxes.close()

    async def _call_for_agent(
        self, program: Program, context: StepContext, conversation: Conversation, name: str, text: str
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
        own, schemas = replace(context, answers=(), token=CancelToken()), _schemas(declared)
        try:
            called = await self._in_sandbox(name, declared, text, own, conversation)
            if called is not None:
                return check_value(called.answer.get("value", called.answer.get("text")), schemas)
            code = self.code.load(declared.implementation, conversation.code.pins)
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
        self, name: str, declared: FunctionComponent, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        """Call a function in a sandbox; at level ``none`` on the loop when it is async, else in a thread."""
        schemas = _schemas(declared)
        called = await self._in_sandbox(name, declared, text, context, conversation)
        if called is not None:
            result = as_text(called.answer.get("text", called.answer.get("value")), schemas)
            return StepOutput(text=result, code_digest=called.code_digest, facts=called.facts)
        code = self.code.load(declared.implementation, conversation.code.pins)
        if is_async(code):
            return await _await(code, text, context, schemas)
        try:
            return await in_thread(partial(_call, code, text, context, schemas))
        except asyncio.CancelledError:
            context.token.cancel()
            raise

    async def _in_sandbox(
        self, name: str, declared: FunctionComponent, text: str, context: StepContext, conversation: Conversation
    ) -> Called | None:
        """Call a function in a sandbox; ``None`` where it runs in this process."""
        check_input(text, _schemas(declared))
        use = FunctionUse(
            part=CodePart(name=name, sandbox=declared.sandbox),
            implementation=declared.implementation,
            environment=conversation.environment,
            code=conversation.code,
        )
        request = {"text": text, "context": step_context_as_json(context)}
        return await self.sandboxes.call(use, request, CallSecrets())


def _schemas(declared: FunctionComponent) -> FunctionSchemas:
    return FunctionSchemas(takes=declared.input_schema, returns=declared.output_schema)


def _call(code: Code, text: str, context: StepContext, schemas: FunctionSchemas) -> StepOutput:
    return StepOutput(text=call(code, text, context, schemas), code_digest=code.module_digest)


async def _await(code: Code, text: str, context: StepContext, schemas: FunctionSchemas) -> StepOutput:
    pending = call_for_value(code, text, context, schemas)
    assert asyncio.iscoroutine(pending)
    return StepOutput(text=as_text(await pending, schemas), code_digest=code.module_digest)
