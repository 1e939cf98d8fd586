"""The worker lock of a database, which the threads of a program share."""

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

LOCK_WAIT_SECONDS = 30.0
"""How long a program waits for another process to release the worker lock."""

LOCK_POLL_SECONDS = 0.02

_locks: dict[str, _SharedLock] = {}
"""The worker locks that this process holds, by database."""

_locks_guard = threading.Lock()


@dataclass
class _SharedLock:
    """The worker lock of one database, and the number of this process's threads that share it."""

    lock: Lock
    end: contextlib.ExitStack
    count: int = 1


@contextlib.contextmanager
def worker_lock(store: Store) -> Iterator[Lock]:
    """Hold the worker lock of a database, shared by the threads of this process.

    A database server that restarts ends the lock: code that executes steps for long calls ``renew``.

    Raises:
        Conflict: ``worker_running``: another process holds the lock for longer than ``LOCK_WAIT_SECONDS``.
    """
    key = str(store.engine.url)
    deadline = monotonic() + LOCK_WAIT_SECONDS
    while (lock := _acquire(store, key)) is None:
        if monotonic() >= deadline:
            name = store.engine.url.database or "this database"
            msg = f"Another process executes steps on {name}; this program waited {LOCK_WAIT_SECONDS:g} s for it."
            hint = (
                "Two programs use one database in turns: wait until the other one has finished or paused, or stop it. Or give this "
                "program a database of its own. Nothing was executed, and what people answered is kept."
            )
            raise Conflict(msg, code="worker_running", hint=hint)
        sleep(LOCK_POLL_SECONDS)
    try:
        yield lock
    finally:
        _release(key)


def _acquire(store: Store, key: str) -> Lock | None:
    with _locks_guard:
        shared = _locks.get(key)
        if shared is not None:
            if not shared.lock.renew():
                return None
            shared.count += 1
            return shared.lock
        with contextlib.ExitStack() as end:
            lock = end.enter_context(store.exclusive(WORKER_LOCK))
            if not lock:
                return None
            store.transact(runs.clear_owners)
            _locks[key] = _SharedLock(lock, end.pop_all())
            return lock


def _release(key: str) -> None:
    with _locks_guard:
        shared = _locks[key]
        shared.count -= 1
        if not shared.count:
            del _locks[key]
            shared.end.close()
