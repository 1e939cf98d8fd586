"""Due runs by environment: one with thousands of them delays no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kneo.clock import monotonic
from kneo.store.queue import DueRun

SLICE_SECONDS = 0.5
"""The time that a run is driven at least before it gives way to a run of another environment."""

Driven: TypeAlias = tuple[str | None, float]
"""The environment of a driven run, and the monotonic time since when it is driven."""


@dataclass
class FairQueue:
    """Due runs and driven ones, by environment."""

    _due: dict[str | None, dict[str, None]] = field(default_factory=dict)
    """The due runs of each environment, in order; the environment that was served longest ago is the first."""
    _driven: dict[str, Driven] = field(default_factory=dict)

    def add(self, run: DueRun) -> None:
        """Queue a run. One that is still driven stays queued: its driver may have released it."""
        self._due.setdefault(run.environment, {})[run.id] = None

    def take(self) -> str | None:
        """Take a run of the environment with the fewest driven runs."""
        counts = _count(self._driven)
        for environment in sorted(self._due, key=lambda name: counts[name]):
            run_id = self._first(environment)
            if run_id is not None:
                due = self._due.pop(environment)
                del due[run_id]
                if due:
                    self._due[environment] = due
                self._driven[run_id] = environment, monotonic()
                return run_id
        return None

    def end(self, run_id: str) -> None:
        """Remember that a run is not driven any more."""
        self._driven.pop(run_id, None)

    def find_excess(self) -> str | None:
        """Return a driven run that gives way to a queued one of another environment; see ``find_excess``."""
        return find_excess(self._driven, [name for name in self._due if self._first(name) is not None])

    def _first(self, environment: str | None) -> str | None:
        return next((run_id for run_id in self._due[environment] if run_id not in self._driven), None)


def find_excess(driven: Mapping[str, Driven], waiting: Collection[str | None]) -> str | None:
    """Return a driven run that gives way to one of another environment, which has fewer or none; ``None`` where none does.

    It is the one that is driven longest, of the environment with the most driven runs.

    Args:
        driven: The driven runs, by their ids.
        waiting: The environments of due runs.
    """
    counts, before = _count(driven), monotonic() - SLICE_SECONDS
    fewest, most = min((counts[name] for name in waiting), default=None), max(counts.values(), default=0)
    if fewest is None or most < (fewest + 2 if fewest else 1):
        return None
    since, run_id = min((since, run_id) for run_id, (name, since) in driven.items() if counts[name] == most)
    return run_id if since <= before else None


def _count(driven: Mapping[str, Driven]) -> Counter[str | None]:
    return Counter(environment for environment, _ in driven.values())
