"""Levels of a sandbox: which one a call has, which ones this machine can give, and the rights that a profile grants."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["none", "process", "kernel"]
LEVELS: tuple[Level, ...] = ("none", "process", "kernel")

LAUNCHER = Path(__file__).with_name("launch.py")
INTERPRETER = (sys.executable, "-I", "-S", "-B", "-X", "utf8", str(LAUNCHER))
"""The command of the launcher: no packages, no variables and no working directory decide what it imports."""

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What the processes of a sandbox may do.

    Attributes:
        level: How it is enforced.
        net: Hosts and ports: ``host:port`` or ``*.host:port``.
        read: Full paths that may be read.
        write: Full paths that may be read and changed.
        env: Variables, with the values of secrets.
        memory: Writable memory of each process, in bytes.
        cpu_seconds: Processor time of each process.
        processes: Processes at a time.
        digest: The identity of the profile, without the values of secrets.
    """

    level: Level = "process"
    net: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory: int = 512 * MIB
    cpu_seconds: int = 60
    processes: int = 1
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class HostLevel:
    """The highest level of a machine, with the facts that an operator reads: what it has, or what is missing for more."""

    level: Level
    facts: str

    def gives(self, level: str) -> bool:
        """Return whether this machine gives a level."""
        return LEVELS.index(level) <= LEVELS.index(self.level)


@functools.cache
def host_level() -> HostLevel:
    """Try all parts of the level ``kernel`` in a process of its own, and return the level of this machine."""
    if sys.platform != "linux":
        return HostLevel(level="process", facts=f"this system ({sys.platform}) has neither Landlock nor seccomp")
    tried = subprocess.run([*INTERPRETER, "probe"], env={}, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        answer = json.loads(tried.stdout)
    except ValueError:
        answer = {"missing": f"the launcher failed: {tried.stderr.strip()[-300:]}"}
    if "missing" in answer:
        return HostLevel(level="process", facts=str(answer["missing"]))
    return HostLevel(level="kernel", facts=f"Landlock ABI {answer['abi']}, seccomp, user notification")
