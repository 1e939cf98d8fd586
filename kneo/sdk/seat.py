"""Being the process that executes steps on a database, for as long as this process has something to execute."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from kneo.clock import monotonic, sleep
from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import WORKER_LOCK, Store

WAIT_SECONDS = 30.0
LOOK_SECONDS = 0.02

_guard = threading.Lock()
_held: dict[str, tuple[contextlib.ExitStack, int]] = {}
"""By database: the lock, and how many threads of this process share it."""


@contextlib.contextmanager
def seat(store: Store) -> Iterator[None]:
    """Share this process's right to execute steps on a database; wait a while for another process to give it up.

    Raises:
        Conflict: ``worker_running``: another process kept it.
    """
    key = str(store.engine.url)
    deadline = monotonic() + WAIT_SECONDS
    while not _sit(store, key):
        if monotonic() >= deadline:
            msg = "Another process executes steps on this database."
            hint = "Stop it, give this program a database of its own, or embed its steps with KNEO_SERV_PLATFORM."
            raise Conflict(msg, code="worker_running", hint=hint)
        sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        _stand_up(key)


def _sit(store: Store, key: str) -> bool:
    with _guard:
        if key in _held:
            lock, count = _held[key]
            _held[key] = (lock, count + 1)
            return True
        lock = contextlib.ExitStack()
        if not lock.enter_context(store.exclusive(WORKER_LOCK)):
            lock.close()
            return False
        with store.write() as tx:
            runs.clear_owners(tx)
        _held[key] = (lock, 1)
        return True


def _stand_up(key: str) -> None:
    with _guard:
        lock, count = _held.pop(key)
        if count > 1:
            _held[key] = (lock, count - 1)
        else:
            lock.close()
