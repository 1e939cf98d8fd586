"""The quotas of environments for runs: ``queued`` and ``stored``, and the queue of the installation, at a start; and ``running``.

A run counts as running while a driver has it: not while it waits for people, for a time or for its turn, and after the death of its
driver until another one takes it over or it is released. A run beyond the quota has no driver and waits; the end of a session with
another run of the environment makes the first waiting one due.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from kneo import registry
from kneo.clock import isoformat, monotonic
from kneo.errors import KneoError, QuotaExceeded, Transient
from kneo.records.run import Run
from kneo.spec.models.environment import Environment
from kneo.spec.policy import in_bytes
from kneo.store import queue, runs, stored_content
from kneo.store.engine import Store, Tx, lock_table

SETTLED = timedelta(seconds=60)
"""The age of a change from which a measurement includes it: no transaction lasts longer, and no clock is wrong by more."""

LASTING_SECONDS = 600.0
"""The age of a measurement from which the runs that have changed since are too many to be added up at each start."""

SHARE = 0.01
"""The part of the time that measurements of one environment take at most. They are a second apart at least."""


@dataclass(frozen=True)
class _Measurement:
    """The size of the runs of an environment that did not change after a time."""

    size: int
    until: str
    ended: float
    seconds: float

    def may_be_repeated(self) -> bool:
        return monotonic() - self.ended >= max(1.0, self.seconds / SHARE)


class _NotMeasured(Transient):
    """The contents of an environment have to be measured before a run may start, which takes too long for its transaction."""

    def __init__(self, environment: str) -> None:
        super().__init__(f"The stored contents of {environment} are being measured.", hint="Try again.")
        self.environment = environment


class StartQuotas:
    """Checks whether a further run may start.

    Args:
        store: The database.
        max_queue: Runs that may wait for a worker.
    """

    def __init__(self, store: Store, max_queue: int) -> None:
        self._store = store
        self._max_queue = max_queue
        self._measured: dict[str, _Measurement] = {}
        self._measuring: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def transact(self, work: Callable[[Tx], Run]) -> Run:
        """Execute a transaction that calls ``check``, with a measurement before it where it needs one."""
        try:
            return self._store.transact(work)
        except _NotMeasured as refused:
            self._measure(refused.environment)
        return self._store.transact(work)

    def check(self, tx: Tx, rules: Environment | None, added: str) -> None:
        """Check that a run with this input may start.

        Raises:
            Transient: ``queue_full``: too many runs wait for a worker.
            QuotaExceeded: the environment has used up a quota.
        """
        if runs.is_queue_full(tx, self._max_queue):
            msg = f"{self._max_queue} runs wait for a worker; no further one is taken until some have begun."
            raise Transient(msg, code="queue_full", limit=self._max_queue)
        if rules is None:
            return
        queued, stored = rules.spec.quotas.queued, rules.spec.quotas.stored
        if queued is not None and runs.has_waiting(tx, rules.name, queued):
            msg = f"{queued} runs of {rules.name} wait for a worker, which is the quota queued of the environment."
            hint = "Try again once some have begun."
            raise QuotaExceeded(msg, quota="queued", limit=queued, environment=rules.name, retry_after=1, hint=hint)
        if stored is not None:
            self._check_stored(tx, rules.name, stored, len(added.encode()))

    def _check_stored(self, tx: Tx, environment: str, limit: str, added: int) -> None:
        known = self._measured.get(environment)
        if known is None or monotonic() - known.ended > LASTING_SECONDS:
            raise _NotMeasured(environment)
        size = known.size + stored_content.measure(tx, environment, since=known.until)
        if size + added <= in_bytes(limit):
            return
        if known.may_be_repeated():
            # Runs may have been deleted, and those that changed count twice.
            raise _NotMeasured(environment)
        msg = f"The runs of {environment} store {size:,} bytes, and the quota stored of the environment is {limit}."
        hint = "Shorten the retention of runs, or raise the quota in the environment's file."
        raise QuotaExceeded(msg, quota="stored", limit=limit, used=size, environment=environment, hint=hint)

    def _measure(self, environment: str) -> None:
        asked = monotonic()
        with self._measuring[environment]:
            known = self._measured.get(environment)
            if known is not None and known.ended >= asked:
                return
            begun = monotonic()
            with self._store.read() as tx:
                until = isoformat(tx.now - SETTLED)
                size = stored_content.measure(tx, environment, until=until)
            ended = monotonic()
            self._measured[environment] = _Measurement(size, until, ended, ended - begun)


KNOWN_SECONDS = 1.0


def find_limit(tx: Tx, environment: str | None) -> int | None:
    """Return the quota; ``None`` where there is none. A file that cannot be read limits nothing: each step of the run reads it too."""
    try:
        found = registry.find_declared(tx, environment)
    except KneoError:
        return None
    return found.spec.quotas.running if found is not None else None


class KnownLimits:
    """The quotas of environments, each read once in a second: a run is claimed several times in its life."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int | None, float]] = {}

    def find(self, tx: Tx, environment: str | None) -> int | None:
        """Return the quota; ``None`` where there is none."""
        if environment is None:
            return None
        limit, until = self._known.get(environment, (None, 0.0))
        if monotonic() >= until:
            limit = find_limit(tx, environment)
            self._known[environment] = limit, monotonic() + KNOWN_SECONDS
        return limit


def admits(tx: Tx, run: Run, limit: int) -> bool:
    """Return whether a run that this transaction has acquired may be driven. No other one is admitted until the transaction ends."""
    assert run.environment is not None
    lock_table(tx, f"running/{run.environment}")
    return runs.count_driven(tx, run.environment, limit, but=run.id) < limit


def count_free(tx: Tx, environment: str | None) -> int | None:
    """Return how many further runs of an environment may be driven; ``None`` where it has no quota."""
    limit = find_limit(tx, environment)
    if limit is None or environment is None:
        return None
    return limit - runs.count_driven(tx, environment, limit)


def enqueue_waiting(tx: Tx, environment: str) -> None:
    """Enqueue as many waiting runs of an environment as may be driven.

    Some may have a job already. It is unknown which: a job that found no place a moment ago is still in progress.
    """
    free = count_free(tx, environment)
    for run_id in runs.list_waiting(tx, environment, free) if free else ():
        queue.enqueue_again(tx, run_id, environment)
