"""What a process executes next: due runs by environment, so that one with thousands of them delays no other, and steps of its
sessions, of any number at a time or of a single one whose run is suspected.

A run is suspected after several of its workers died. Its next attempt has the process for itself, so that a further death
has no other cause, and harms no other run.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kneo.clock import monotonic
from kneo.store.queue import DueRun


class StepAdmission:
    """The sessions that execute steps, and those that wait for it. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[Hashable, bool] = {}
        """The sessions that execute steps, each with whether it must be alone."""
        self._waiting: dict[Hashable, tuple[Callable[[], None], bool]] = {}
        """The sessions that were not admitted: how each is woken, and whether it must be alone."""

    def enter(self, session: Hashable, wake: Callable[[], None], *, alone: bool) -> bool:
        """Admit a session, or let it wait: ``wake`` is called when it may try again.

        Args:
            session: The session; one that is inside stays there.
            wake: Resumes the session.
            alone: Whether no other session may execute steps meanwhile. From now on none begins to.
        """
        with self._lock:
            others = self._inside.keys() - {session}
            if alone:
                admitted = not others
            else:
                first = session in self._inside or not any(is_alone for _, is_alone in self._waiting.values())
                admitted = first and not any(self._inside[other] for other in others)
            if admitted:
                self._waiting.pop(session, None)
                self._inside[session] = alone
            else:
                self._waiting[session] = (wake, alone)
            return admitted

    def leave(self, session: Hashable) -> None:
        """Record that a session executes no step; it may wait for the next one."""
        with self._lock:
            if self._inside.pop(session, None) is None:
                return
            waiting = self._wakers()
        for wake in waiting:
            wake()

    def remove(self, session: Hashable) -> None:
        """Record that a session neither executes a step nor waits for one."""
        with self._lock:
            inside = self._inside.pop(session, None)
            waited = self._waiting.pop(session, None)
            waiting = self._wakers() if inside is not None or waited is not None else ()
        for wake in waiting:
            wake()

    def _wakers(self) -> tuple[Callable[[], None], ...]:
        """Return how the sessions are woken that may try again; those that must be alone come first."""
        if not self._waiting:
            return ()
        alone = [wake for wake, is_alone in self._waiting.values() if is_alone]
        return tuple(alone[:1] or (wake for wake, _ in self._waiting.values()))


SLICE_SECONDS = 0.5
"""The time that a run is driven at least before it gives way to a run of another environment."""

FULL_SECONDS = 0.5
"""The time for which no run is taken of an environment that has as many driven runs as its file allows."""

Driven: TypeAlias = tuple[str | None, float]
"""The environment of a driven run, and the monotonic time since when it is driven."""


@dataclass
class FairQueue:
    """Due runs and driven ones, by environment."""

    _due: dict[str | None, dict[str, None]] = field(default_factory=dict)
    """The due runs of each environment, in order; the environment that was served longest ago is the first."""
    _driven: dict[str, Driven] = field(default_factory=dict)
    _full: dict[str | None, float] = field(default_factory=dict)
    """Environments with as many driven runs as their files allow, each with the monotonic time until which none is taken."""
    _ended: dict[str | None, float] = field(default_factory=dict)
    """The monotonic time at which the last driven run of an environment ended."""

    def add(self, run: DueRun) -> None:
        """Queue a run. One that is still driven stays queued: its driver may have released it."""
        self._due.setdefault(run.environment, {})[run.id] = None

    def take(self) -> str | None:
        """Take a run of the environment with the fewest driven runs."""
        counts = _count(self._driven)
        for environment in sorted(self._takeable(), key=lambda name: counts[name]):
            run_id = self._first(environment)
            if run_id is not None:
                due = self._due.pop(environment)
                del due[run_id]
                if due:
                    self._due[environment] = due
                self._driven[run_id] = environment, monotonic()
                return run_id
        return None

    def end(self, run_id: str, *, is_full: bool = False) -> None:
        """Remember that a run is not driven any more.

        Args:
            run_id: The run.
            is_full: Whether it was not driven because its environment has as many driven runs as its file allows. It is the first
                of its environment then, and is taken once another one has ended, or after a moment: the file may allow more.
        """
        if run_id not in self._driven:
            return
        environment, since = self._driven.pop(run_id)
        if not is_full:
            self._full.pop(environment, None)
            self._ended[environment] = monotonic()
            return
        self._due[environment] = {run_id: None, **self._due.get(environment, {})}
        if self._ended.get(environment, -math.inf) < since:
            self._full[environment] = monotonic() + FULL_SECONDS

    def _takeable(self) -> list[str | None]:
        now = monotonic()
        return [name for name in self._due if self._full.get(name, now) <= now]

    def find_excess(self) -> str | None:
        """Return a driven run that gives way to a queued one of another environment; see ``find_excess``."""
        return find_excess(self._driven, [name for name in self._takeable() if self._first(name) is not None])

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
