"""Child processes for functions with a time limit: kept for the next call, killed when the limit passes.

Run as a program, this module is the child: it reads one JSON object per line from its standard input and answers each with
one line. The first line holds the folders and prefixes of allowed modules, and, for the code of a
bundle, its files: they are imported from these very bytes.
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
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import TextIO, TypeAlias

from kneo.agents.tools.python.backend import check_review
from kneo.agents.tools.python.functions import await_tool, bounded_result, call_tool
from kneo.clock import sleep
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError
from kneo.function_context import (
    StepContext,
    ToolContext,
    WaitForAnswer,
    read_step_context,
    read_wait_request,
    step_context_as_json,
)
from kneo.runtime.steps import modules
from kneo.runtime.steps.code import CodeLoader, CodeUnavailable
from kneo.runtime.steps.code_store import CodeStore, python_command, sources_in
from kneo.runtime.steps.functions import (
    MAX_OUTPUT_CHARS,
    FunctionSchemas,
    StepOutput,
    as_text,
    call_for_value,
    check_value,
)
from kneo.runtime.steps.threads import in_thread
from kneo.sandbox.processes import ChildFailed
from kneo.settings import function_environment
from kneo.spec.code import BundleCode, RunCode, read_code
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

    def __init__(self, code: CodeLoader, store: CodeStore | None = None) -> None:
        self.code = code
        self._store = store
        self._idle: dict[Digest | None, list[_Child]] = {}
        self._loaded: set[tuple[Digest, str]] = set()
        """What a child has imported of a bundle's code without an error."""

    async def call(
        self, function: str, text: str, context: StepContext, code: RunCode, signature: FunctionSchemas
    ) -> StepOutput:
        """Call a function in a child; a cancellation kills the child and its processes.

        Raises:
            ChildFailed: the function raised, or took the process down with it.
            WaitForAnswer: the function asks a person first.
        """
        answer = await self._exchange(_request(function, text, context, code, signature), code)
        if "waiting" in answer:
            raise WaitForAnswer(read_wait_request(answer["waiting"]))
        digest = answer["code_digest"]
        return StepOutput(text=str(answer["text"]), code_digest=str(digest) if digest is not None else None)

    async def call_for_value(
        self, function: str, text: str, context: StepContext, code: RunCode, signature: FunctionSchemas
    ) -> object:
        """Call a function for an agent in a child, and return a JSON value.

        Raises:
            ChildFailed: the function raised, or took the process down with it.
            Invalid: ``function_output_invalid``: the function asks a person.
        """
        request = {**_request(function, text, context, code, signature), "value": True}
        answer = await self._exchange(request, code)
        if "waiting" in answer:
            msg = f"The function {function} asks a person, which it cannot do for an agent."
            raise Invalid(msg, code="function_output_invalid")
        return answer["value"]

    async def load(self, functions: Collection[str], code: RunCode) -> None:
        """Import functions of a bundle's code in a child, once.

        Raises:
            ChildFailed: a function cannot be imported.
        """
        assert code.digest is not None
        new = [each for each in functions if (code.digest, each) not in self._loaded]
        if new:
            await self._exchange({"load": new, "implementations": dict(code.pins)}, code)
            self._loaded.update((code.digest, each) for each in new)

    async def call_tool(
        self,
        function: str,
        arguments: Mapping[str, object],
        context: ToolContext,
        code: RunCode,
        gates: Collection[str],
    ) -> object:
        """Call a tool in a child, and return its result; a cancellation kills the child and its processes.

        Raises:
            ChildFailed: the function raised, or took the process down with it.
        """
        request = {
            "tool": function,
            "arguments": dict(arguments),
            "context": asdict(context),
            "implementations": dict(code.pins),
            "gates": list(gates),
        }
        return (await self._exchange(request, code))["result"]

    async def _exchange(self, request: Message, code: RunCode) -> Message:
        child = await self._take(code)
        done = False
        try:
            answer = await self._ask(child.process, request)
            done = True
        finally:
            if done and sum(map(len, self._idle.values())) < MAX_IDLE:
                self._idle.setdefault(code.digest, []).append(child)
            else:
                await _kill(child)
        error = answer.get("error")
        if isinstance(error, dict):
            raise ChildFailed(error["type"], error["message"])
        return answer

    async def _take(self, code: RunCode) -> _Child:
        idle = self._idle.get(code.digest, [])
        if idle and code.digest is not None:
            await self._open(code, starts=False)
        while idle:
            child = idle.pop()
            if child.process.returncode is None:
                return child
        command = [
            sys.executable,
            "-P",
            "-m",
            "kneo.runtime.steps.child_process",
        ]  # no modules of the working directory
        roots, files = [str(root) for root in self.code.roots], None
        if code.digest is not None:
            folder, content = await self._open(code, starts=True)
            command, roots, files = python_command(folder), [str(folder)], content.as_json()
        loop, pipe = asyncio.get_running_loop(), asyncio.subprocess.PIPE
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(LINE_BYTES, loop),
            *command,
            stdin=pipe,
            stdout=pipe,
            stderr=None,
            env=function_environment(*PROVIDER_VARIABLES.values()),
            start_new_session=True,
        )
        process = Process(transport, protocol, loop)
        assert process.stdin is not None
        hello = {"roots": roots, "allow": list(self.code.allow), "code": files}
        process.stdin.write(json.dumps(hello).encode() + b"\n")
        return _Child(process, transport)

    async def _open(self, code: RunCode, *, starts: bool) -> tuple[Path, BundleCode]:
        if self._store is None:
            msg = f"This process has no code store for the code {code.digest}."
            raise CodeUnavailable(msg, hint="Let a worker continue the run.")
        return await in_thread(partial(self._store.open, code, starts=starts))

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
        for idle in self._idle.values():
            while idle:
                await _kill(idle.pop())


def _request(
    function: str, text: str, context: StepContext, code: RunCode, signature: FunctionSchemas
) -> Mapping[str, object]:
    return {
        "function": function,
        "input": text,
        "context": step_context_as_json(context),
        "signature": asdict(signature),
        "implementations": dict(code.pins),
    }


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
    roots = tuple(Path(root) for root in hello["roots"])
    if hello["code"] is not None:
        (folder,) = roots
        modules.accept(sources_in(folder, read_code(hello["code"], file="code")))
        sys.path[:] = [str(folder), *(each for each in sys.path if each in sys.argv[1:-1])]
        sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, type) or each in _STANDARD_FINDERS]
    loader = CodeLoader(roots, tuple(hello["allow"]))
    for line in requests:
        request = json.loads(line)
        kind = next((kind for kind in ("tool", "load") if kind in request), "function")
        _answer(answers, _HANDLERS[kind](loader, request))


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
        gates = request["gates"]
        assert isinstance(gates, list)
        check_review(function, str(context["tool"]), gates)
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
        given, signature, pins = request["context"], request["signature"], request["implementations"]
        assert isinstance(given, dict)
        assert isinstance(signature, dict)
        assert isinstance(pins, dict)
        code, schemas = loader.load(str(request["function"]), pins), FunctionSchemas(**signature)
        result = call_for_value(code, str(request["input"]), read_step_context(given), schemas)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        if request.get("value"):
            return {"value": check_value(result, schemas)}
        text = as_text(result, schemas)
    except WaitForAnswer as waiting:
        return {"waiting": waiting.request.as_json()}
    except Exception as error:  # noqa: BLE001 - returned as the step's error
        return _error(error)
    return {"text": text, "code_digest": code.module_digest}


def handle_load(loader: CodeLoader, request: Message) -> Message:
    """Import the functions of a request."""
    functions, pins = request["load"], request["implementations"]
    assert isinstance(functions, list)
    assert isinstance(pins, dict)
    try:
        for each in functions:
            loader.load(str(each), pins)
    except Exception as error:  # noqa: BLE001 - returned as the step's error
        return _error(error)
    return {}


_HANDLERS: Mapping[str, Callable[[CodeLoader, Message], Message]] = {
    "tool": handle_tool,
    "load": handle_load,
    "function": handle,
}

_STANDARD_FINDERS = (BuiltinImporter, FrozenImporter, PathFinder)


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
