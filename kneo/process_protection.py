"""Protection of a process that holds secrets: no program that it starts reads its memory, environment or open files.

On Linux a process reads another of its user in ``/proc``, unless that one is not dumpable. A process with the capability
CAP_SYS_PTRACE reads those too, so a process of root gives it up for itself and all that it starts. Other systems have neither.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

KEPT_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
}
"""Capabilities that a protected process keeps, with their numbers: ports below 1024, and files and programs of other users."""

_KEPT = sum(1 << number for number in KEPT_CAPABILITIES.values())

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_CAPABILITY_VERSION = 0x20080522
_SETS = 3
"""Effective, permitted and inheritable capabilities: 32 of each, then the next 32 of each."""

_UNSUPPORTED = sys.platform != "linux"


def protect_process() -> None:
    """Protect this process and the programs that it starts from now on; a repeated call changes nothing.

    Capabilities belong to a thread: a process calls this before it starts others. A call that a filter of system calls denies
    has no effect; :func:`find_weaknesses` reports it.
    """
    if _UNSUPPORTED:
        return
    _prctl(_PR_SET_DUMPABLE, 0)
    if os.geteuid() == 0:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)  # a program that root starts would get all capabilities back
    _reduce_capabilities()


def find_weaknesses(secrets: Callable[[str], bool]) -> Iterator[str]:
    """Yield a sentence for each way by which a program that this process starts could read secrets of Kneo's processes.

    Args:
        secrets: Whether the variable of a name holds a secret.
    """
    if _UNSUPPORTED:
        yield f"This system ({sys.platform}) does not protect the environment of a process from programs of its user."
        return
    if _prctl(_PR_GET_DUMPABLE, 0) != 0:
        yield "Programs that this process starts can read its memory and environment."
    if _permitted() & ~_KEPT:
        yield "This process has capabilities of root that Kneo does not need, and programs that it starts have them."
    for pid, name, variables in _ancestors():
        if names := ", ".join(sorted(filter(secrets, variables))):
            yield f"Programs of this user can read {names} in the environment of process {pid} ({name})."


def _ancestors() -> Iterator[tuple[int, str, Collection[str]]]:
    """Yield id, name and readable variables of each process above this one, and of process 1, which begins a container."""
    pid = os.getppid()
    while pid:
        parent, name, environment = 0, "", b""
        with suppress(OSError):
            # The name is in parentheses and may hold any character; state and parent follow.
            _, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition("(")
            name, _, fields = rest.rpartition(")")
            parent = int(fields.split()[1])
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        yield pid, name, {each.partition(b"=")[0].decode(errors="replace") for each in environment.split(b"\0")}
        pid = parent or int(pid != 1)


def _prctl(option: int, value: int) -> int:
    return int(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3))


def _reduce_capabilities() -> None:
    library, header, sets = _capabilities()
    for index in range(_SETS):
        sets[index] &= _KEPT
        sets[_SETS + index] = 0
    library.capset(header, sets)


def _permitted() -> int:
    _, _, sets = _capabilities()
    return int(sets[1] | sets[_SETS + 1] << 32)


def _capabilities() -> tuple[ctypes.CDLL, ctypes.Array[ctypes.c_uint32], ctypes.Array[ctypes.c_uint32]]:
    library = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)  # 0 is the calling thread
    sets = (ctypes.c_uint32 * (2 * _SETS))()
    library.capget(header, sets)
    return library, header, sets
