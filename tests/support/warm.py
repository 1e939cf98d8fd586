"""Python processes that start at once: each is forked from one that has imported all of Kneo and done nothing else.

They are processes like any other, with a pid, pipes, an environment and an end of their own; only what they import is there
already. What importing costs, and that everything can be imported, is tested with processes that begin with nothing.

The process that is forked is this module run as a script. Whoever starts processes adopts them: their parent is the one that
asked, as it is for any process it starts, because Linux can be told so. On other systems processes begin with nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kneo.settings import process_environment

PR_SET_CHILD_SUBREAPER = 36
"""What tells Linux that the orphans among one's descendants become one's children."""

LONGEST_REQUEST = 1_048_576

ALSO = (
    "alembic.command",
    "kneo.runtime.engine.assemble",
    "kneo.cli.local",
    "kneo.notify.delivery",
    "kneo.runtime.dispatch.postgres",
    "kneo.sdk.workflow",
    "kneo.api.environments",
    "kneo.store.service_key",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "uvicorn.protocols.http.auto",
)
"""What processes import beside the commands' own modules."""


def start_python(command: Sequence[str | Path], **options: object) -> subprocess.Popen[str]:
    """Start ``python -m MODULE …``, ``python -c CODE …`` or ``python SCRIPT …``; takes what ``Popen`` does.

    Of the options only the working directory, the environment and what concerns the three pipes.
    """
    words = [str(word) for word in command]
    assert words[0] == sys.executable
    return (_Forked if sys.platform == "linux" else subprocess.Popen)(words, **options)


CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
    talk.connect({address!r})
    request = {{"words": ["-m", "kneo.cli.main", *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ), "pipes": [0, 1, 2]}}
    talk.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {longest})
    socket.send_fds(talk, [json.dumps(request).encode()], [0, 1, 2])
    status = int(talk.recv(32) or -9)
sys.exit(status if status >= 0 else 128 - status)
"""
"""A command that has a process made and ends as it does; a signal to the command does not reach the process."""


@functools.cache
def commands() -> str:
    """Return the folder of a command ``kneo`` for programs that start it by its name, such as shells; put it into their PATH first."""
    if sys.platform != "linux":
        return str(Path(sys.executable).parent)
    folder = Path(tempfile.mkdtemp(prefix="kneo-command-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kneo = folder / "kneo"
    kneo.write_text(CLIENT.format(python=sys.executable, address=_warm().address, longest=LONGEST_REQUEST))
    kneo.chmod(0o755)
    return str(folder)


def run_python(
    command: Sequence[str | Path], *, timeout: float = 240, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run such a process to its end and keep what it said."""
    with start_python(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


class _Forked(subprocess.Popen):
    """A process that is forked from the warm one rather than made from nothing."""

    def _execute_child(self, *given: Any) -> None:
        args, _, _, _, _, cwd, env = given[:7]
        pipes = given[10:16]
        asked = {number: fd for number, fd in enumerate((pipes[0], pipes[3], pipes[5])) if fd != -1}
        request = {
            "words": args[1:],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),  # noqa: TID251 - what a process inherits
            "pipes": list(asked),
        }
        self.pid = _warm().fork(request, list(asked.values()))
        self._child_created = True
        self._close_pipe_fds(*pipes)


class _Warm:
    """The process that is forked."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._one_at_a_time = threading.Lock()
        self._talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._talk.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_REQUEST)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as commands:
            commands.bind("")  # to a name that the system chooses
            commands.listen()
            self.address: bytes = commands.getsockname()
            handed = [theirs.fileno(), commands.fileno()]
            self._process = subprocess.Popen(  # it ends when this process does: nobody is left to ask it
                [sys.executable, __file__, *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                env={"PATH": process_environment("PATH")["PATH"], "HOME": os.devnull},
            )

    def fork(self, request: Mapping[str, Any], pipes: list[int]) -> int:
        """Make a process; returns its pid once it is a child of ours."""
        with self._one_at_a_time:
            socket.send_fds(self._talk, [json.dumps(request).encode()], pipes)
            answer = self._talk.recv(32)
        assert answer, "the process that is forked has ended"
        return int(answer)

    def used_seconds(self) -> float:
        """Return the processor time of commands that have ended: they are no children of this process."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


@functools.cache
def _warm() -> _Warm:
    return _Warm()


def used_seconds() -> float:
    """Return the processor time of the commands that programs started by their name and that have ended."""
    return _warm().used_seconds() if _warm.cache_info().currsize else 0.0


# ---- in the process that is forked ------------------------------------------------------------------------------


def _import_everything() -> None:
    from kneo.cli.commands import COMMANDS

    parts = [part for entry in COMMANDS.values() for part in (entry, *entry.parts.values())]
    for name in {part.target.partition(":")[0] for part in parts} | set(ALSO):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _wait(talk: socket.socket, commands: socket.socket) -> Mapping[str, Any]:
    """Fork at each request; returns in the processes that this makes, and nowhere else."""
    while True:
        ready, _, _ = select.select([talk, commands], [], [])
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        asking = talk if talk in ready else commands.accept()[0]
        message, pipes, _, _ = socket.recv_fds(asking, LONGEST_REQUEST, 3)
        if not message and asking is talk:
            os._exit(0)
        request = json.loads(message)
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            made = os.fork()
            if made == 0:
                for end in (talk, commands, asking):
                    end.close()
                for fd in (read, write):
                    os.close(fd)
                for number, fd in zip(request["pipes"], pipes, strict=True):
                    os.dup2(fd, number)
                    os.close(fd)
                return request
            if asking is talk:
                os.write(write, str(made).encode())
            else:
                for fd in (0, 1, 2, *pipes):
                    os.close(fd)
                asking.send(str(os.waitstatus_to_exitcode(os.waitpid(made, 0)[1])).encode())
            os._exit(0)
        if asking is talk:
            os.waitpid(between, 0)  # from here on the new process is a child of the process that asked
            talk.send(os.read(read, 32))
        else:
            asking.close()
        for fd in (read, write, *pipes):
            os.close(fd)


def _become(request: Mapping[str, Any]) -> None:
    """Be the process that was asked for."""
    os.chdir(request["cwd"])
    os.environ.clear()  # noqa: TID251 - what a process inherits
    os.environ.update(request["env"])  # noqa: TID251
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    importlib.invalidate_caches()
    words = request["words"]
    if words[0] == "-m":
        sys.path[0] = request["cwd"]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.path[0] = str(Path(words[0]).parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _import_everything()
    asked = _wait(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
    _become(asked)
