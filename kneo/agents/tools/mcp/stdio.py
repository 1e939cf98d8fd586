"""MCP over stdio: a server's process, with a bound on each of its messages.

The SDK's own transport reads lines of any length and leaves the server running when the worker is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from kneo.agents.sandboxes import public_hosts, sandbox_facts
from kneo.agents.tools.mcp.failures import McpUnreachable
from kneo.sandbox.levels import Rights
from kneo.sandbox.processes import ChildFailed, Sandboxed, program_task

GRACE_SECONDS = 2.0
"""Time for a server to end after its input closes, and again after SIGTERM."""

KILL_SECONDS = 10.0
"""Time for a killed server to be gone."""

MAX_STDERR_CHARS = 2_000

Received: TypeAlias = SessionMessage | Exception
Streams: TypeAlias = tuple[MemoryObjectReceiveStream[Received], MemoryObjectSendStream[SessionMessage]]


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """The program of a server, with its variables, its rights, and the services inside the network that it may reach."""

    name: str
    command: str
    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    max_message_bytes: int
    rights: Rights
    inside: Sequence[str] = ()


class ServerProcess(asyncio.SubprocessProtocol):
    """One process of a server, in its sandbox, and all that it starts."""

    def __init__(self, program: ServerCommand) -> None:
        self._program = program
        self._sandbox = Sandboxed(program.rights)
        self._sandbox.proxy.check = public_hosts(program.inside)
        self._transport: asyncio.SubprocessTransport | None = None
        self._partial = bytearray()
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = asyncio.Event()
        self._output_ended = False
        self._stopping = False
        self._stderr = ""

    @contextlib.asynccontextmanager
    async def streams(self) -> AsyncGenerator[Streams]:
        """Start the process and exchange messages with it; leaving ends the process and all that it started.

        Raises:
            Forbidden: ``sandbox_unavailable`` or ``sandbox_path_denied``.
            McpUnreachable: the process cannot be started.
        """
        from_server, received = anyio.create_memory_object_stream[Received](0)
        sent, to_server = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            await self._start()
            async with anyio.create_task_group() as group:
                group.start_soon(self._receive, from_server)
                group.start_soon(self._send, to_server)
                try:
                    yield received, sent
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._stop()
                    group.cancel_scope.cancel()
        finally:
            self._sandbox.remove()
            for stream in (from_server, received, sent, to_server):
                stream.close()

    def has_ended(self) -> bool:
        return self._output_ended

    def secrets(self) -> Iterable[str]:
        return ()

    def facts(self) -> Mapping[str, object]:
        return sandbox_facts(self._program.rights, self._sandbox.proxy.denied)

    def last_words(self) -> str:
        """Return the end of the server's standard error, for the message of a failure.

        A line whose beginning was dropped is left out: of a secret in it, a part could be left.
        """
        rest = self._stderr.partition("\n")[2]
        return (rest if len(self._stderr) == MAX_STDERR_CHARS and rest.strip() else self._stderr).strip()

    async def _start(self) -> None:
        program, sandbox = self._program, self._sandbox
        await asyncio.get_running_loop().subprocess_exec(
            lambda: self, *sandbox.command, env={}, pass_fds=(sandbox.descriptor,), start_new_session=True
        )
        task = program_task(program.rights, [program.command, *program.args], program.env, program.cwd)
        try:
            await sandbox.begin(program.name, task)
        except ChildFailed as error:
            msg = f"The MCP server {program.command} cannot be started: {error}."
            raise McpUnreachable(msg) from None

    async def _receive(self, stream: MemoryObjectSendStream[Received]) -> None:
        async with stream:  # closed with the server's output: the session's requests end then
            while (line := await self._line()) is not None:
                try:
                    await stream.send(_message(line))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return

    async def _send(self, stream: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async with stream:
            async for message in stream:
                await self._writable.wait()
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                self._input().write(text.encode() + b"\n")

    async def _line(self) -> bytes | None:
        while not self._lines:
            if self._output_ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        line = self._lines.popleft()
        self._waiting_bytes -= len(line)
        self._pace()
        return line

    def _input(self) -> asyncio.WriteTransport:
        assert self._transport is not None
        return cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))

    def _pace(self) -> None:
        """Read from the server only while little waits for the session; read everything once the server is to end."""
        assert self._transport is not None
        output = cast("asyncio.ReadTransport | None", self._transport.get_pipe_transport(1))
        if output is None or output.is_closing():
            return
        if self._waiting_bytes > self._program.max_message_bytes and not self._stopping:
            output.pause_reading()
        else:
            output.resume_reading()

    async def _stop(self) -> None:
        assert self._transport is not None
        self._stopping = True
        self._pace()
        self._input().close()
        for seconds, end in (
            (GRACE_SECONDS, self._terminate),
            (GRACE_SECONDS, self._sandbox.close),
            (KILL_SECONDS, None),
        ):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
            if self._ended.is_set() or end is None:
                break
            end()
        self._transport.close()

    def _terminate(self) -> None:
        assert self._transport is not None
        with contextlib.suppress(ProcessLookupError):
            self._transport.terminate()

    # The event loop calls the methods below.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._stderr = (self._stderr + data.decode(errors="replace"))[-MAX_STDERR_CHARS:]
            return
        if self._stopping:
            return
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        if max(map(len, (*lines, rest))) > self._program.max_message_bytes:
            self._stderr = f"It sent a message above {self._program.max_message_bytes} bytes."
            self._sandbox.close()
            self._end_output()
            return
        self._partial = rest
        self._lines.extend(line for line in map(bytes, lines) if line.strip())
        self._waiting_bytes = sum(map(len, self._lines))
        self._pace()
        self._arrived.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the base class names it
        if fd == 1:
            self._end_output()
        if fd == 0:
            self._writable.set()

    def process_exited(self) -> None:
        self._sandbox.close()
        self._end_output()
        self._ended.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end_output(self) -> None:
        self._output_ended = True
        self._arrived.set()


def _message(line: bytes) -> Received:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error
