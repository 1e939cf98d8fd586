"""Processor time of the processes of a fleet, by kind."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class ProcessorTime:
    """Adds up the processor time of processes, with that of the processes which they start.

    A process that ends between two samples loses what it used since the first of them.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._last: dict[int, float] = {}

    def sample(self, pids: Mapping[int, str]) -> None:
        """Add what the processes used since the previous sample, or since their start; and what this process used as the load.

        Args:
            pids: The kind of each process.
        """
        self._seconds["load"] = time.process_time()
        processes = _processes()
        now = {pid: _used(pid, processes) for pid in pids if pid in processes}
        for pid, used in now.items():
            self._seconds[pids[pid]] += max(0.0, used - self._last.get(pid, 0.0))
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """The processor time in seconds, by kind."""
        return dict(self._seconds)


@dataclass(frozen=True)
class _Process:
    parent: int
    seconds: float
    """The processor time of the process and of its ended children."""


def _processes() -> dict[int, _Process]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(folder.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])) * TICK_SECONDS)
    return found


def _used(pid: int, processes: Mapping[int, _Process]) -> float:
    children = (child for child, process in processes.items() if process.parent == pid)
    return processes[pid].seconds + sum(_used(child, processes) for child in children)
