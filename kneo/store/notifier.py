"""News among the threads of this process, so that whoever waits need not ask the database all the time."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

REMEMBERED = 64
"""News kept for those who were about to listen when they were told."""

ANYTHING = ""
"""The name under which every commit of this process is told, whatever it is about."""

Hear = Callable[[object], object]


class CommitNotifier:
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

    def tell(self, told: Sequence[tuple[str, object]] = ()) -> None:
        """Say that something was committed: to whoever listens to anything, and to those it has news for.

        Args:
            told: Names and their news, where that is known whole.
        """
        with self._lock:
            self._count += len(told)
            self._told.extend(told)
            heard = [(hear, news) for name, news in ((ANYTHING, None), *told) for hear in self._listeners.get(name, ())]
        for hear, news in heard:
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
