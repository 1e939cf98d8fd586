"""Steps of kind ``function``: one text argument, and the step's context for functions that ask for it."""

from __future__ import annotations

import asyncio
import inspect

from kneo.errors import Invalid
from kneo.runtime.code import Code
from kneo.runtime.steps.base import StepContext, StepOutput

MAX_OUTPUT_CHARS = 1_000_000
"""What a function may return; more would have to be stored with every later step."""


async def run(code: Code, text: str, context: StepContext, *, timeout_seconds: int | None) -> StepOutput:
    """Call the function, on the loop when it is async and in a thread when it is not.

    A result that comes after ``timeout_seconds`` is discarded.

    Raises:
        TimeoutError: it took longer.
        Invalid: it returned too much.
    """
    keywords = {"context": context} if "context" in inspect.signature(code.function).parameters else {}
    async with asyncio.timeout(timeout_seconds):
        if inspect.iscoroutinefunction(code.function):
            result = await code.function(text, **keywords)
        else:
            result = await asyncio.to_thread(code.function, text, **keywords)
    output = str(result)
    if len(output) > MAX_OUTPUT_CHARS:
        msg = f"The function returned {len(output)} characters; at most {MAX_OUTPUT_CHARS} are kept."
        raise Invalid(msg, code="output_too_large")
    return StepOutput(text=output, code_digest=code.module_digest)
