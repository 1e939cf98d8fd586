"""Child processes for functions with a time limit: kept for the next call, killed when the limit passes.

Run as a program, this module is the child: it reads one JSON object per line from its standard input and answers each with
one line. The first line holds the folders and prefixes of allowed modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
import threading
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO, TypeAlias

from kneo.agents.tools.python.functions import await_tool, bounded_result, call_tool
from kneo.clock import sleep
from kneo.errors import KneoError
from kneo.function_context import (
    StepContext,
    ToolContext,
    WaitForAnswer,
    messages_as_json,
    read_messages,
    read_wait_answers,
    read_wait_request,
)
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.functions import MAX_OUTPUT_CHARS, FunctionSchemas, StepOutput, call
from kneo.sandbox.processes import ChildFailed
from kneo.settings import function_environment
from kneo.spec.models.providers import PROVIDER_VARIABLES

MAX_IDLE = 4
"""Idle processes that are kept; each holds some 20 MB."""

LINE_BYTES = 16 * MAX_OUTPUT_CHARS
"""Longest answer line: every character may be escaped."""

MAX_ERROR_CHARS = 100_000


Message: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class _Child:
    process: Process
    transport: asyncio.SubprocessTransport
    """Closes the pipes, which a process that the child started may hold open."""


class ChildProcesses:
    """A pool of child processes. All its methods belong to the event loop that first used it."""

    def __init__(self, code: CodeLoader) -> None:
        self.code = code
        self._idle: list[_Child] = []

    async def call(self, function: str, text: str, context: StepContext, signature: FunctionSchemas) -> StepOutput:
        """Call a function in a child; a cancellation kills the child and its processes.

        Raises:
            ChildFailed: the function raised, or took the process down with it.
            WaitForAnswer: the function asks a person first.
        """
        answer = await self._exchange(_request(function, text, context, signature))
        if "waiting" in answer:
            raise WaitForAnswer(read_wait_request(answer["waiting"]))
        digest = answer["code_digest"]
        return StepOutput(text=str(answer["text"]), code_digest=str(digest) if digest is not None else None)

    async def call_tool(
        self, function: str, arguments: Mapping[str, object], context: ToolContext, pins: Mapping[str, str]
    ) -> object:
        """Call a tool in a child, and return its result; a cancellation kills the child and its processes.

        Raises:
            ChildFailed: the function raised, or took the process down with it.
        """
        request = {
            "tool": function,
            "arguments": dict(arguments),
            "context": asdict(context),
            "implementations": dict(pins),
        }
        return (await self._exchange(request))["result"]

    async def _exchange(self, request: Message) -> Message:
        child = await self._take()
        done = False
        try:
            answer = await self._ask(child.process, request)
            done = True
        finally:
            if done and len(self._idle) < MAX_IDLE:
                self._idle.append(child)
            else:
                await _kill(child)
        error = answer.get("error")
        if isinstance(error, dict):
            raise ChildFailed(error["type"], error["message"])
        return answer

    async def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.process.returncode is None:
                return child
        loop, pipe = asyncio.get_running_loop(), asyncio.subprocess.PIPE
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(LINE_BYTES, loop),
            sys.executable,
            "-P",  # modules of the working directory must not replace installed ones
            "-m",
            "kneo.runtime.steps.child_process",
            stdin=pipe,
            stdout=pipe,
            stderr=None,
            env=function_environment(*PROVIDER_VARIABLES.values()),
            start_new_session=True,
        )
        process = Process(transport, protocol, loop)
        assert process.stdin is not None
        hello = {"roots": [str(root) for root in self.code.roots], "allow": list(self.code.allow)}
        process.stdin.write(json.dumps(hello).encode() + b"\n")
        return _Child(process, transport)

    @staticmethod
    async def _ask(process: Process, request: Message) -> Message:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
        try:
            line = await process.stdout.readline()
        except ValueError:
            raise ChildFailed("output_too_large", f"The function answered with more than {LINE_BYTES} bytes.") from None
        if not line:
            code = await process.wait()
            raise ChildFailed("process_died", f"The function took its process down (exit status {code}).")
        answer: Message = json.loads(line)
        return answer

    async def close(self) -> None:
        while self._idle:
            await _kill(self._idle.pop())


def _request(function: str, text: str, context: StepContext, signature: FunctionSchemas) -> Mapping[str, object]:
    given = {
        "run_id": context.run_id,
        "step_id": context.step_id,
        "attempt": context.attempt,
        "idempotency_key": context.idempotency_key,
        "previous_output": context.previous_output,
        "feedback": context.feedback,
        "values": dict(context.values),
        "outputs": dict(context.outputs),
        "messages": messages_as_json(context.messages),
        "answers": [asdict(one) for one in context.answers],
        "implementations": dict(context.implementations),
    }
    return {"function": function, "input": text, "context": given, "signature": asdict(signature)}


async def _kill(child: _Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        child.process.kill()
    await child.process.wait()
    child.transport.close()


WATCH_SECONDS = 0.5


def main() -> None:
    """Answer requests until the parent process ends."""
    requests, answers = _own_streams()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    hello = json.loads(requests.readline())
    loader = CodeLoader(tuple(Path(root) for root in hello["roots"]), tuple(hello["allow"]))
    for line in requests:
        request = json.loads(line)
        _answer(answers, handle_tool(loader, request) if "tool" in request else handle(loader, request))


def _own_streams() -> tuple[TextIO, TextIO]:
    """Return the streams of requests and answers, apart from those that functions and their processes read and write."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdout = sys.stderr
    return requests, answers


def handle_tool(loader: CodeLoader, request: Message) -> Message:
    """Call the tool of a request and return its result."""
    arguments, context, pins = request["arguments"], request["context"], request["implementations"]
    assert isinstance(arguments, dict)
    assert isinstance(context, dict)
    assert isinstance(pins, dict)
    try:
        function = loader.load(str(request["tool"]), pins).function
        result = call_tool(function, arguments, ToolContext(**context))
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        return {"result": bounded_result(result)}
    except Exception as error:  # noqa: BLE001 - returned as the call's error
        return _error(error)


async def _awaited(pending: Awaitable[object]) -> object:
    return await await_tool(pending)


def _error(error: Exception) -> Message:
    kind = error.code if isinstance(error, KneoError) else type(error).__name__
    return {"error": {"type": kind, "message": (str(error) or kind)[:MAX_ERROR_CHARS]}}


def handle(loader: CodeLoader, request: Message) -> Message:
    """Call the function of a request and return its result."""
    try:
        given, signature = request["context"], request["signature"]
        assert isinstance(given, dict)
        code = loader.load(str(request["function"]), given["implementations"])
        assert isinstance(signature, dict)
        read = {"answers": read_wait_answers(given["answers"]), "messages": read_messages(given["messages"])}
        context = StepContext(**{**given, **read})
        text = call(code, str(request["input"]), context, FunctionSchemas(**signature))
    except WaitForAnswer as waiting:
        return {"waiting": waiting.request.as_json()}
    except Exception as error:  # noqa: BLE001 - returned as the step's error
        return _error(error)
    return {"text": text, "code_digest": code.module_digest}


def _answer(answers: TextIO, message: Message) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    # A function must not have effects after the process that records them was killed.
    while os.getppid() == parent:
        sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
