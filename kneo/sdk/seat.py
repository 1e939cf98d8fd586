"""Being the process that executes steps on a database, for as long as this process has something to execute."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from kneo.clock import monotonic, sleep
from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.locks import Lock

WAIT_SECONDS = 30.0
LOOK_SECONDS = 0.02

_guard = threading.Lock()


@dataclass
class _Held:
    """The lock of one database, and how many threads of this process share it."""

    lock: Lock
    end: contextlib.ExitStack
    count: int = 1


_held: dict[str, _Held] = {}
"""By database."""


@contextlib.contextmanager
def seat(store: Store) -> Iterator[Lock]:
    """Share this process's right to execute steps on a database; wait a while for another process to give it up.

    A server that restarts takes the lock away: whoever executes steps for long asks it ``renew``.

    Raises:
        Conflict: ``worker_running``: another process kept it.
    """
    key = str(store.engine.url)
    deadline = monotonic() + WAIT_SECONDS
    while (lock := _sit(store, key)) is None:
        if monotonic() >= deadline:
            msg = "Another process executes steps on this database."
            hint = "Stop it, give this program a database of its own, or embed its steps with KNEO_SERV_PLATFORM."
            raise Conflict(msg, code="worker_running", hint=hint)
        sleep(LOOK_SECONDS)
    try:
        yield lock
    finally:
        _stand_up(key)


def _sit(store: Store, key: str) -> Lock | None:
    with _guard:
        found = _held.get(key)
        if found is not None:
            if not found.lock.renew():
                return None
            found.count += 1
            return found.lock
        with contextlib.ExitStack() as end:
            lock = end.enter_context(store.exclusive(WORKER_LOCK))
            if not lock:
                return None
            store.transact(runs.clear_owners)
            _held[key] = _Held(lock, end.pop_all())
            return lock


def _stand_up(key: str) -> None:
    with _guard:
        found = _held[key]
        found.count -= 1
        if not found.count:
            del _held[key]
            found.end.close()
