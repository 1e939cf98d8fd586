"""Steps of kind ``function``: one text argument, and the step's context for functions that ask for it."""

from __future__ import annotations

import asyncio

from kneo.runtime.code import Code
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
        output = await in_thread(lambda: call(code, text, context, signature))
    except asyncio.CancelledError:
        context.token.cancel()
        raise
    return StepOutput(text=output, code_digest=code.module_digest)


async def _run_async(code: Code, text: str, context: StepContext, signature: Signature) -> StepOutput:
    check_input(text, signature)
    pending = code.function(text, **keywords(code, context))
    assert asyncio.iscoroutine(pending)
    return StepOutput(text=as_text(await pending, signature), code_digest=code.module_digest)
