"""The processes of sandboxes: templates, which have imported one module and fork for each call, and programs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import kneo
from kneo.errors import Forbidden, Invalid, KneoError
from kneo.sandbox import confine
from kneo.sandbox.levels import INTERPRETER, Rights
from kneo.sandbox.network import PROXY_VARIABLES, Check, ConnectionNotifier, FilterProxy
from kneo.sandbox.scratch import remove_folder
from kneo.settings import function_environment
from kneo.spec.models.providers import PROVIDER_VARIABLES

START_SECONDS = 60.0
"""Time for a template to import its module."""

IDLE_SECONDS = 300.0
MAX_CALLS = 1_000
END_SECONDS = 5.0
COUNT_SECONDS = 0.1

MAX_ANSWER_BYTES = 16_000_000
MAX_LINE_BYTES = 1_000_000

KEPT_VARIABLES = ("PATH", "LANG", "TZ")

SYSTEM_PATHS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
SYSTEM_FILES = (
    "/etc/ssl",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/ld.so.cache",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


class ChildFailed(Exception):
    """The exception of a function in a sandbox."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class ModuleCode:
    """A function of a module, and the bytes that it is executed from.

    Attributes:
        function: Its dotted name.
        sources: Path and bytes of the module and of all that it imports from its folders, by name; no bytes for a folder.
        paths: The folders that other modules are found in.
        allow: Prefixes of modules that specs may name instead of those of ``sources``.
        digest: The SHA-256 of the function's module.
        folder: The folder of a bundle's code, all of which may be read.
        before_start: Checks, before a process starts, that the folder is as it was signed.
    """

    function: str
    sources: Mapping[str, tuple[str, bytes | None]] = field(repr=False)
    paths: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    digest: str | None = None
    folder: str | None = None
    before_start: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def module(self) -> str:
        """The name of the function's module."""
        return self.function.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The name of the function in its module."""
        return self.function.rpartition(".")[2]

    @cached_property
    def identity(self) -> str:
        """Equal for functions of one module of equal bytes."""
        bytes_of = [
            (name, path, hashlib.sha256(data or b"").hexdigest()) for name, (path, data) in self.sources.items()
        ]
        return json.dumps([self.module, self.paths, self.allow, self.folder, bytes_of])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a process answered to a call.

    Attributes:
        content: ``value``, ``text`` or ``waiting``.
        denied: Hosts and ports that the call did not reach.
    """

    content: Mapping[str, object]
    denied: Sequence[str] = ()


class SandboxProcesses:
    """The templates of a worker. All its methods belong to the event loop that first used it.

    Args:
        limit: Templates that live at a time; further calls wait.
    """

    def __init__(self, limit: int = 8) -> None:
        self.free = asyncio.Semaphore(limit)
        self._limit, self._live = limit, 0
        self._idle: list[_Template] = []

    async def call(
        self,
        name: str,
        code: ModuleCode,
        rights: Rights,
        request: Mapping[str, object],
        *,
        check: Check | None = None,
        gates: Collection[str] | None = None,
    ) -> Answer:
        """Call a function; a cancellation kills its process and all that it started.

        Args:
            name: The tool or function, for messages.
            code: The function.
            rights: The rights of the call.
            request: ``text`` or ``arguments``, and ``context``.
            check: Checks hosts beyond the profile and resolves them.
            gates: The gates that the spec has, where a function may declare some.

        Raises:
            ChildFailed: the function raised, or took its process down with it.
            KneoError: ``sandbox_unavailable``, ``sandbox_path_denied``, ``sandbox_limit``, ``implementation_invalid`` …
        """
        async with self.free:
            template = await self._take(name, code, rights)
            ended = False
            try:
                named = {"name": name, "function": code.attribute, "gates": None if gates is None else [*gates]}
                answer = await template.call(name, {**request, **named}, check)
                ended = template.has_ended
            except BaseException as error:
                ended = not isinstance(error, ChildFailed | KneoError) or template.has_ended
                raise
            finally:
                if ended:
                    await self._end(template)
                else:
                    self._keep(template)
            return answer

    async def close(self) -> None:
        """End the templates that no call uses."""
        while self._idle:
            await self._end(self._idle.pop())

    async def _take(self, name: str, code: ModuleCode, rights: Rights) -> _Template:
        key = (code.identity, rights)
        for template in reversed(self._idle):
            if template.key == key and template.is_alive:
                self._idle.remove(template)
                template.stop_waiting()
                return template
        if self._live >= self._limit and self._idle:
            await self._end(self._idle.pop(0))
        if code.before_start is not None:
            await asyncio.to_thread(code.before_start)
        template = _Template(key, rights)
        self._live += 1
        try:
            async with asyncio.timeout(START_SECONDS):
                await template.start(name, _task(rights, _runs(rights)) | _function_task(code))
        except TimeoutError:
            await self._end(template)
            msg = f"{name} did not import within {START_SECONDS:.0f} s."
            raise Invalid(msg, code="implementation_invalid") from None
        except BaseException:
            await self._end(template)
            raise
        return template

    def _keep(self, template: _Template) -> None:
        self._idle.append(template)

        def expire() -> None:
            if template in self._idle:
                self._idle.remove(template)
                template.ending = asyncio.ensure_future(self._end(template))

        template.wait_for(IDLE_SECONDS, expire)

    async def _end(self, template: _Template) -> None:
        self._live -= 1
        await asyncio.shield(template.end())


class Sandboxed:
    """A process of the launcher: its supervisor, its control socket and its network.

    Args:
        rights: The rights of the confined process.
    """

    def __init__(self, rights: Rights) -> None:
        self.rights = rights
        self.proxy = FilterProxy(rights.net)
        self.has_ended = False
        self._notifier: ConnectionNotifier | None = None
        self._buffer = bytearray()
        self.control, self._theirs = socket.socketpair()
        self.control.setblocking(False)
        self.scratch = tempfile.mkdtemp(prefix="kneo-sandbox-")

    @property
    def command(self) -> tuple[str, ...]:
        """The command of the launcher, which inherits ``descriptor``."""
        return (*INTERPRETER, str(self.descriptor), self.scratch)

    @property
    def descriptor(self) -> int:
        return self._theirs.fileno()

    async def begin(self, name: str, task: Mapping[str, object]) -> None:
        """Send the launcher its task, and wait until it is confined.

        Raises:
            KneoError: it cannot confine itself, or the function cannot be imported.
        """
        self._theirs.close()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await loop.sock_sendall(self.control, json.dumps(task).encode() + b"\n")
        while not (answer := await self.line()).get("ready"):
            if "error" in answer:
                raise _failure(name, self.rights, answer["error"])
            if not answer:
                raise _failure(name, self.rights, {"type": "sandbox_unavailable", "message": "its launcher ended"})

    async def line(self) -> Mapping[str, object]:
        """Return the next message of the launcher; an empty one at its end."""
        while b"\n" not in self._buffer:
            await _readable(self.control)
            try:
                data, descriptors, _, _ = socket.recv_fds(self.control, 65_536, 1)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data, descriptors = b"", []
            for each in descriptors:
                if self._notifier is None and self.rights.level == "kernel":
                    self._notifier = ConnectionNotifier(each, self.proxy.accept)
                else:  # of a module that found the socket
                    os.close(each)
            self._buffer += data
            if not data or len(self._buffer) > MAX_LINE_BYTES:
                self.has_ended = True
                return {}
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self.has_ended = True
            return {}
        return message

    def close(self) -> None:
        """Close the control socket: the supervisor then kills the confined processes and removes the scratch folder."""
        self.has_ended = True
        self.proxy.end_connections()
        if self._notifier is not None:
            self._notifier.close()
        self.control.close()
        self._theirs.close()

    async def end_process(self, process: Process | None) -> None:
        """End all processes of a launcher and remove the scratch folder."""
        self.close()
        if process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        self.remove()

    def remove(self) -> None:
        """Close the control socket, and remove the scratch folder where the supervisor could not."""
        self.close()
        remove_folder(self.scratch)


class _Template(Sandboxed):
    """A process that has imported a module, and forks for each call."""

    def __init__(self, key: tuple[str, Rights], rights: Rights) -> None:
        super().__init__(rights)
        self.key = key
        self.ending: asyncio.Future[None] | None = None
        self._process: Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._calls = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, name: str, task: Mapping[str, object]) -> None:
        """Start the process and wait until it has imported the module; raises what ``begin`` raises."""
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env={},
            pass_fds=(self.descriptor,),
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._errors = asyncio.ensure_future(_relay(self._process.stderr))
        await self.begin(name, task)
        self._allow_fork()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(b"c")

    async def call(self, name: str, request: Mapping[str, object], check: Check | None) -> Answer:
        """Make one call; raises what ``SandboxProcesses.call`` raises."""
        self.proxy.check, self.proxy.denied = check, []
        self._calls += 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        counting = None
        if self.rights.level == "kernel" and self.rights.processes > 1:
            counting = asyncio.ensure_future(self._count())
        with ours:
            try:
                with theirs:
                    self._allow_fork()
                    socket.send_fds(self.control, [b"c"], [theirs.fileno()])
                data = await _exchange(ours, json.dumps(request).encode())
            except (BrokenPipeError, ConnectionResetError):
                data = b""
            finally:
                exceeded = counting is not None and counting.done() and not counting.cancelled()
                if counting is not None:
                    counting.cancel()
        if exceeded:
            self.has_ended = True
            raise limit_exceeded(name, f"started more than {self.rights.processes} processes")
        if data is None:
            self.has_ended = True
            msg = f"The function answered with more than {MAX_ANSWER_BYTES} bytes."
            raise ChildFailed("output_too_large", msg)
        report = await self.line()
        self.has_ended = self.has_ended or counting is not None or self._calls >= MAX_CALLS
        self.proxy.end_connections()
        return Answer(content=self._content(name, data, report), denied=tuple(self.proxy.denied))

    def _content(self, name: str, data: bytes, report: Mapping[str, object]) -> Mapping[str, object]:
        try:
            answer = json.loads(data) if data else None
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and "error" not in answer and isinstance(answer.get("text", ""), str):
            return answer
        if isinstance(answer, dict) and "error" in answer:
            raise _failure(name, self.rights, answer["error"])
        status, used = report.get("status"), report.get("cpu")
        slow = isinstance(used, float) and used >= self.rights.cpu_seconds and status == -signal.SIGKILL
        if status == -signal.SIGXCPU or slow:
            raise limit_exceeded(name, f"used more than {self.rights.cpu_seconds} s of processor time")
        raise ChildFailed("process_died", f"The function took its process down (exit status {status}).")

    def _allow_fork(self) -> None:
        """Let the template start the process of its next call."""
        if self._notifier is not None:
            self._notifier.forks += 1

    async def _count(self) -> None:
        """Return once there are more processes than the profile allows."""
        assert self._process is not None
        await has_more_processes(self._process.pid, self.rights.processes + 1)
        self.control.close()

    def wait_for(self, seconds: float, then: object) -> None:
        """Do something unless a call comes within a time."""
        assert callable(then)
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def end(self) -> None:
        """End all processes of the template and remove its folder."""
        self.stop_waiting()
        await self.end_process(self._process)
        if self._errors is not None:
            self._errors.cancel()


def program_task(
    rights: Rights, command: Sequence[str], env: Mapping[str, str] | None, folder: str | None
) -> dict[str, object]:
    """Return the task of a launcher that becomes a program.

    Args:
        rights: The rights of the program.
        command: The program and its arguments.
        env: Its whole environment; ``None`` is that of functions.
        folder: Its working directory; ``None`` is the scratch folder.
    """
    task = _task(rights, confine.RUN)
    if env is not None:
        task["environment"] = {**(PROXY_VARIABLES if rights.level == "kernel" and rights.net else {}), **env}
    program = shutil.which(command[0], path=env.get("PATH") if env is not None else None) or command[0]
    system = [*_list_of(task["system"]), (program, confine.RUN)]
    return {**task, "command": list(command), "folder": folder, "system": system}


def _list_of(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _task(rights: Rights, programs: int) -> dict[str, object]:
    """Return the part of a launcher's task that all have; ``programs`` is the right to read, or to run what is read."""
    if rights.level == "none":
        own = function_environment(*PROVIDER_VARIABLES.values())
    else:
        own = {name: value for name, value in function_environment().items() if name in KEPT_VARIABLES}
    network = PROXY_VARIABLES if rights.level == "kernel" and rights.net else {}
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    package = Path(kneo.__file__).parent
    system = [
        *((path, confine.RUN) for path in (*SYSTEM_PATHS, *sorted(prefixes))),
        *((path, confine.READ) for path in (*SYSTEM_FILES, "/dev/urandom", "/dev/random", str(package))),
        *((path, confine.USE) for path in DEVICES),
        (str(package.parent), confine.LIST),
    ]
    return {
        **{name: value for name, value in asdict(rights).items() if name in _LIMITS},
        "environment": {"PATH": os.defpath, **own, **network, **rights.env},
        "system": [
            (path, access if programs & confine.EXECUTE else access & ~confine.EXECUTE) for path, access in system
        ],
        "declared": [
            *((path, confine.READ | programs) for path in rights.read),
            *((path, confine.WRITE) for path in rights.write),
        ],
    }


def _runs(rights: Rights) -> int:
    return confine.RUN if rights.processes > 1 else confine.READ


_LIMITS = ("level", "net", "memory", "cpu_seconds", "processes")


def _function_task(code: ModuleCode) -> dict[str, object]:
    tops = {str(_top(path, name, data)) for name, (path, data) in code.sources.items()}
    tops |= {code.folder} if code.folder is not None else set()
    return {
        "implementation": code.function,
        "allow": list(code.allow),
        "paths": code.paths,
        "sources": {
            name: (path, base64.b64encode(data).decode() if data is not None else None)
            for name, (path, data) in code.sources.items()
        },
        "own": [
            *((each, confine.READ) for each in sorted(tops)),
            *((each, confine.LIST) for each in code.paths),
        ],
    }


def _top(path: str, name: str, data: bytes | None) -> Path:
    """Return the file or folder of the top-level package that a module is in."""
    parts = name.count(".") + (1 if data is None or path.endswith("/__init__.py") else 0)
    place = Path(path)
    if data is None:
        parts -= 1
    return place.parents[parts - 1] if parts else place


async def has_more_processes(pid: int, most: int) -> None:
    """Return once there are more processes below one."""
    while sum(1 for _ in _below(pid)) <= most:  # noqa: ASYNC110 - other processes
        await asyncio.sleep(COUNT_SECONDS)


def _below(pid: int) -> Iterator[int]:
    """Yield the processes below one."""
    for task in _entries(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _below(child)


def _entries(folder: str) -> list[Path]:
    try:
        return [*Path(folder).iterdir()]
    except OSError:
        return []


def limit_exceeded(name: str, what: str) -> KneoError:
    """Return the error of a call that used more than its profile grants."""
    return Forbidden(f"{name} {what}.", code="sandbox_limit", hint="Raise the limit under sandbox in the spec.")


def _failure(name: str, rights: Rights, error: object) -> Exception:
    """Return the exception for an error that a process reported."""
    found = error if isinstance(error, dict) else {}
    kind, message, hint = str(found.get("type", "process_died")), str(found.get("message", "")), found.get("hint")
    match kind:
        case "MemoryError":
            return limit_exceeded(name, f"used more than {rights.memory >> 20} MiB of memory")
        case "sandbox_unavailable":
            msg = f"{name} needs a sandbox at level {rights.level}, which this machine cannot give: {message}."
            return Forbidden(msg, code=kind, hint="kneo doctor shows what is missing.")
        case "sandbox_path_denied":
            return Forbidden(f"{name} {message}", code=kind)
    kinds = {"Forbidden": Forbidden, "Invalid": Invalid}
    if found.get("kind") in kinds:
        return kinds[found["kind"]](message, code=kind, hint=str(hint) if hint else None)
    return ChildFailed(kind, message)


async def _readable(stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(stream, arrived)
    try:
        await ready
    finally:
        loop.remove_reader(stream)


async def _exchange(stream: socket.socket, request: bytes) -> bytes | None:
    """Send a request and return the answer; ``None`` for one that is too long."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await loop.sock_sendall(stream, request)
        stream.shutdown(socket.SHUT_WR)
    answer = bytearray()
    while received := await loop.sock_recv(stream, 1 << 18):
        answer += received
        if len(answer) > MAX_ANSWER_BYTES:
            return None
    return bytes(answer)


async def _relay(errors: asyncio.StreamReader) -> None:
    """Write what a sandbox writes to its standard error to that of this process."""
    while data := await errors.read(65_536):
        with contextlib.suppress(OSError):
            os.write(2, data)
