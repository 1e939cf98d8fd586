"""Notifications of commits among the threads of one process, so that waiting for a change needs few reads.

A notification is a hint: the database has the truth, and other processes send none.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

REMEMBERED = 64
"""Notifications that are kept for listeners that start late."""

ANY_COMMIT = ""
"""The topic of every commit of this process."""

Listener = Callable[[object], object]


class CommitNotifier:
    """Calls the listeners of a topic after a commit, with the change where the committer knows all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._recent: deque[tuple[str, object]] = deque(maxlen=REMEMBERED)
        self._count = 0

    @contextlib.contextmanager
    def listen(self, topic: str, listener: Listener) -> Iterator[None]:
        """Call a listener at every notification until the block ends, in the committing thread; it must be quick and not raise."""
        with self._lock:
            self._listeners.setdefault(topic, []).append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[topic].remove(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    def notify(self, notifications: Sequence[tuple[str, object]] = ()) -> None:
        """Notify the listeners of any commit, and those of these topics.

        Args:
            notifications: Topics and the changes; ``None`` for a change that has to be read.
        """
        with self._lock:
            self._count += len(notifications)
            self._recent.extend(notifications)
            calls = [
                (listener, change)
                for topic, change in ((ANY_COMMIT, None), *notifications)
                for listener in self._listeners.get(topic, ())
            ]
        for listener, change in calls:
            listener(change)

    def mark(self) -> int:
        """Return the current position among the notifications, for ``since``."""
        return self._count

    def since(self, topic: str, mark: int) -> Sequence[object] | None:
        """Return the changes of a topic after a mark; ``None`` where some of them are no longer kept."""
        with self._lock:
            missed = self._count - mark
            if missed > len(self._recent):
                return None
            recent = list(self._recent)[len(self._recent) - missed :]
            return [change for name, change in recent if name == topic]
