"""Growth of memory and descriptors of processes, from samples: the flatter one of two straight lines through the second half.

A leak grows in both of their halves; a controller that becomes the leader, and reads what the other one had read, in one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from soak.evidence import Sample

LEAST_SAMPLES = 10

LEAK_BYTES = 16 * 2**20
LEAK_SHARE = 0.1
LEAK_DESCRIPTORS = 20


@dataclass(frozen=True)
class Growth:
    """The slope of a process's memory and descriptors, and their growth in the observed time."""

    process: str
    seconds: float
    bytes_per_hour: float
    descriptors_per_hour: float
    bytes: int

    @property
    def is_leak(self) -> bool:
        """Whether the growth is more than noise."""
        hours = self.seconds / 3600
        more = self.bytes_per_hour * hours
        return more > max(LEAK_BYTES, LEAK_SHARE * self.bytes) or self.descriptors_per_hour * hours > LEAK_DESCRIPTORS

    def __str__(self) -> str:
        return (
            f"{self.process}: {self.bytes / 2**20:.0f} MiB, {self.bytes_per_hour / 2**20:+.1f} MiB per hour, "
            f"{self.descriptors_per_hour:+.1f} descriptors per hour (over {self.seconds:.0f} s)"
        )


def growths(samples: Iterable[Sample], warm_up: float) -> list[Growth]:
    """Return the growth of each process over the second half of the time; without those that lived too short.

    Args:
        samples: The samples of each process in their order.
        warm_up: Seconds of a process's life that do not count: it imports modules and fills its pools.
    """
    by_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.process].append(sample)
    if not by_process:
        return []
    first = min(series[0].at for series in by_process.values())
    middle = (first + max(series[-1].at for series in by_process.values())) / 2
    found = []
    for process, series in sorted(by_process.items()):
        since = max(middle, series[0].at + warm_up)
        late = [sample for sample in series if sample.at >= since]
        if len(late) >= LEAST_SAMPLES:
            found.append(_growth(process, late))
    return found


def _growth(process: str, series: Sequence[Sample]) -> Growth:
    times = [sample.at for sample in series]
    return Growth(
        process=process,
        seconds=times[-1] - times[0],
        bytes_per_hour=3600 * _lasting(times, [sample.bytes for sample in series]),
        descriptors_per_hour=3600 * _lasting(times, [sample.descriptors for sample in series]),
        bytes=series[-1].bytes,
    )


def _lasting(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the smaller slope of the halves of the time."""
    half = len(times) // 2
    return min(slope(times[:half], values[:half]), slope(times[half:], values[half:]))


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the straight line with the least squares; 0 where the times are one."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    together = sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True))
    return together / spread if spread else 0.0


def sample(process: str, pid: int, at: float) -> Sample | None:
    """Return the memory and the descriptors of a process; ``None`` where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        # A process of Kneo does not show its open files, but their number: as the size of the folder, from Linux 6.2 on.
        descriptors = Path(f"/proc/{pid}/fd").stat().st_size
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return Sample(process, at, pages * os.sysconf("SC_PAGE_SIZE"), descriptors)
