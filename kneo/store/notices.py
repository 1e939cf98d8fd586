"""News among the threads of this process, so that whoever waits need not ask the database all the time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Notices:
    """Tells those who listen to a name that something was committed. A hint: what is true stands in the database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Callable[[], object]]] = {}

    @contextlib.contextmanager
    def listening(self, name: str) -> Iterator[threading.Event]:
        """Listen until the block ends; the event is set at the first news since it was cleared."""
        event = threading.Event()
        with self.calling(name, event.set):
            yield event

    @contextlib.contextmanager
    def calling(self, name: str, hear: Callable[[], object]) -> Iterator[None]:
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

    def tell(self, name: str) -> None:
        """Say that there is news; only after it was committed."""
        with self._lock:
            listeners = tuple(self._listeners.get(name, ()))
        for hear in listeners:
            hear()
