"""News among the threads of this process, so that whoever waits need not ask the database all the time."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

REMEMBERED = 64
"""News kept for those who were about to listen when they were told."""

Hear = Callable[[object], object]


class Notices:
    """Tells those who listen to a name that something was committed, and what, where whoever tells knows all of it.

    A hint: what is true stands in the database.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Hear]] = {}
        self._told: deque[tuple[str, object]] = deque(maxlen=REMEMBERED)
        self._count = 0

    @contextlib.contextmanager
    def listening(self, name: str) -> Iterator[threading.Event]:
        """Listen until the block ends; the event is set at the first news since it was cleared."""
        event = threading.Event()
        with self.calling(name, lambda _: event.set()):
            yield event

    @contextlib.contextmanager
    def calling(self, name: str, hear: Hear) -> Iterator[None]:
        """Call something at every news until the block ends, in the thread that tells; it must be quick and not raise."""
        with self._lock:
            self._listeners.setdefault(name, []).append(hear)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[name].remove(hear)
                if not self._listeners[name]:
                    del self._listeners[name]

    def tell(self, name: str, news: object = None) -> None:
        """Say that there is news, and what, where that is known whole; only after it was committed."""
        with self._lock:
            self._count += 1
            self._told.append((name, news))
            listeners = tuple(self._listeners.get(name, ()))
        for hear in listeners:
            hear(news)

    def mark(self) -> int:
        """Return a mark to ask ``since`` with."""
        return self._count

    def since(self, name: str, mark: int) -> Sequence[object] | None:
        """Return the news told under a name after a mark; ``None`` where that is so long ago that some is forgotten."""
        with self._lock:
            missed = self._count - mark
            if missed > len(self._told):
                return None
            return [news for told, news in list(self._told)[len(self._told) - missed :] if told == name]
