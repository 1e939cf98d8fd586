"""Steps of kind ``function``: one text argument, and the step's context for functions that ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial

from kneo.runtime.code import Code, CodeLoader
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.runtime.steps.call import Signature, as_text, call, check_input, is_async, keywords
from kneo.runtime.steps.children import Children
from kneo.runtime.steps.threads import in_thread


async def run(
    children: Children, implementation: str, text: str, context: StepContext, signature: Signature, seconds: int | None
) -> StepOutput:
    """Call the function: on the loop when it is async, in a thread when it is not.

    One that is not async and has a time limit runs in a child process, because nothing else can stop it.

    Raises:
        TimeoutError: it took longer.
        Invalid: what it was given or returned does not fit.
        ChildFailed: what a function in a child process raised.
    """
    code = children.code.load(implementation, context.implementations)
    if is_async(code):
        async with asyncio.timeout(seconds):
            return await _run_async(code, text, context, signature)
    if seconds is not None:
        async with asyncio.timeout(seconds):
            return await children.call(implementation, text, context, signature)
    try:
        return await in_thread(partial(_called, code, text, context, signature))
    except asyncio.CancelledError:
        context.token.cancel()
        raise


def plain(
    loader: CodeLoader, implementation: str, pins: Mapping[str, str], signature: Signature
) -> Callable[[str, StepContext], StepOutput] | None:
    """Return what calls a function in the thread that it is called in; ``None`` where it is async or cannot be loaded."""
    try:
        code = loader.load(implementation, pins)
    except Exception:  # noqa: BLE001 - whatever it is, it comes up again where the step is executed
        return None
    if is_async(code):
        return None
    # In a context of its own: what it sets there is not for the steps that this thread executes after it.
    return lambda text, context: copy_context().run(_called, code, text, context, signature)


def _called(code: Code, text: str, context: StepContext, signature: Signature) -> StepOutput:
    return StepOutput(text=call(code, text, context, signature), code_digest=code.module_digest)


async def _run_async(code: Code, text: str, context: StepContext, signature: Signature) -> StepOutput:
    check_input(text, signature)
    pending = code.function(text, **keywords(code, context))
    assert asyncio.iscoroutine(pending)
    return StepOutput(text=as_text(await pending, signature), code_digest=code.module_digest)
