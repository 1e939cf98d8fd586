"""Admission of a process's sessions to executing steps: any number at a time, or a single one whose run is suspected.

A run is suspected after several of its workers died. Its next attempt has the process for itself, so that a further death
has no other cause, and harms no other run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable


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
