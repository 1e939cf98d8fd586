"""Programs in sandboxes that read one input, write one output and end: the scripts of skills."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kneo.sandbox.levels import Rights
from kneo.sandbox.network import Check
from kneo.sandbox.processes import (
    MAX_ANSWER_BYTES,
    ChildFailed,
    Sandboxed,
    has_more_processes,
    limit_exceeded,
    program_task,
)

MAX_ERROR_BYTES = 4_000
"""The end of a program's standard error, for the message of a failure."""

_ENDED = re.compile(r"exit status -?[0-9]+, ([0-9]+) MiB of memory")

_NO_MEMORY = re.compile(r"^MemoryError$|[Oo]ut of memory|[Cc]annot allocate|memory exhausted", re.MULTILINE)
"""The last words of Python, bash, awk, sort and Perl where memory is at its limit."""

_CRASHES = {128 + each: each.name for each in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)}
"""How other programs end there: ``dash`` recurses without an end when it cannot report that memory is short."""


@dataclass(frozen=True, kw_only=True)
class ScriptProgram:
    """A program and its input.

    Attributes:
        name: The tool, for messages.
        command: The program and its arguments. Its working directory is a folder with the files, in its scratch folder.
        files: Bytes by path below that folder.
        data: Its standard input.
    """

    name: str
    command: Sequence[str]
    files: Mapping[str, bytes] = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Output:
    """The standard output of a program, and the hosts and ports that it did not reach."""

    data: bytes
    denied: Sequence[str]


async def run_program(program: ScriptProgram, rights: Rights, check: Check) -> Output:
    """Run a program to its end; a cancellation kills it and all that it started.

    Raises:
        ChildFailed: ``script_failed``: its exit status is not 0; ``output_too_large``.
        Forbidden: ``sandbox_unavailable``, ``sandbox_path_denied`` or ``sandbox_limit``.
    """
    sandbox = Sandboxed(rights)
    sandbox.proxy.check = check
    process, tasks = None, list[asyncio.Task[object]]()
    try:
        folder = Path(sandbox.scratch, "files")
        await asyncio.to_thread(_lay_out, folder, program.files)
        process = await asyncio.create_subprocess_exec(
            *sandbox.command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={},
            pass_fds=(sandbox.descriptor,),
            start_new_session=True,
        )
        await sandbox.begin(program.name, program_task(rights, program.command, None, str(folder)))
        return Output(data=await _exchange(process, program, rights, tasks), denied=tuple(sandbox.proxy.denied))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.shield(_end(sandbox, process))


async def _end(sandbox: Sandboxed, process: Process | None) -> None:
    await sandbox.end_process(process)
    for stream in (process.stdout, process.stderr) if process is not None else ():
        while stream is not None and await stream.read(1 << 18):  # a pipe is closed at its end
            pass


async def _exchange(
    process: Process, program: ScriptProgram, rights: Rights, tasks: list[asyncio.Task[object]]
) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_last(process.stderr))
    output = asyncio.create_task(_whole(process.stdout))
    tasks += [errors, output, asyncio.create_task(_feed(process.stdin, program.data))]
    ends: list[asyncio.Task[object]] = [output]
    if rights.level == "kernel" and rights.processes > 1:
        ends.append(asyncio.create_task(has_more_processes(process.pid, rights.processes)))
        tasks.append(ends[1])
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not output.done():
        raise limit_exceeded(program.name, f"started more than {rights.processes} processes")
    data = output.result()
    if data is None:
        raise ChildFailed("output_too_large", f"The script wrote more than {MAX_ANSWER_BYTES} bytes.")
    status = await process.wait()
    if not status:
        return data
    message, used = _shown(await errors)
    if status == 128 + signal.SIGXCPU:
        raise limit_exceeded(program.name, f"used more than {rights.cpu_seconds} s of processor time")
    limit = rights.memory >> 20
    if _NO_MEMORY.search(message[-200:]):
        raise limit_exceeded(program.name, f"used more than {limit} MiB of memory")
    if status in _CRASHES and used >= limit // 4:
        what = f"was ended by {_CRASHES[status]} with {used} of its {limit} MiB of memory in use"
        raise limit_exceeded(program.name, what)
    raise ChildFailed("script_failed", f"The script ended with exit status {status}: {message or 'it wrote no error'}")


def _lay_out(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
        stream.close()


async def _whole(stream: asyncio.StreamReader) -> bytes | None:
    """Return all of a stream; ``None`` where it is too long."""
    found = bytearray()
    while data := await stream.read(1 << 18):
        found += data
        if len(found) > MAX_ANSWER_BYTES:
            return None
    return bytes(found)


async def _last(stream: asyncio.StreamReader) -> bytes:
    """Return the end of a stream, one byte longer than is shown where there is more."""
    found = b""
    while data := await stream.read(1 << 16):
        found = (found + data)[-MAX_ERROR_BYTES - 1 :]
    return found


def _shown(errors: bytes) -> tuple[str, int]:
    """Return a standard error and the MiB of memory that the launcher wrote after it.

    A line that was cut is left out: a part of a secret could be left of it.
    """
    text = errors.decode(errors="replace").rstrip()
    if len(errors) > MAX_ERROR_BYTES:
        text = text.partition("\n")[2]
    head, _, last = text.rpartition("\n")
    ended = _ENDED.fullmatch(last)
    return (head.rstrip(), int(ended[1])) if ended else (text, 0)
