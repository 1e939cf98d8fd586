"""Real processes for tests of what holds between processes."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TypeVar

from warm import start_python as start_warm

T = TypeVar("T")

FIRST_PORT, PORTS = 10_000, 20_000
"""Below the ports that systems give to sockets whose port is 0, and to connections: nothing else takes one unasked."""

_ports = itertools.count(os.getpid() * 97)  # Processes that run tests at once begin apart.


def free_port() -> int:
    """Return a port for a program that has to be given one; where the service itself listens, give it an open socket."""
    for number in itertools.islice(_ports, PORTS):
        port = FIRST_PORT + number % PORTS
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python process that runs ``code`` and talks over its pipes."""
    return start_warm(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_pythons(imports: str, code: str, argument_lists: Sequence[Sequence[str]], *, timeout: float = 240) -> list[str]:
    """Run one process per argument list; return what each printed, all of them having succeeded.

    They begin ``code`` together, when the slowest has done its ``imports``.
    """
    whole = f"{imports}\nimport sys\nprint('ready', flush=True)\nsys.stdin.readline()\n{code}"
    processes = [start_python(whole, *arguments) for arguments in argument_lists]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [output.strip() for output, _ in ended]


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """Call ``work`` from this many threads, which all begin together."""
    barrier = Barrier(count)

    def begin(number: int) -> T:
        barrier.wait(240)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def is_executing(pid: int) -> bool:
    """Whether a process executes; one that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
