"""Whether a further run may start: the queue of the installation, and the quotas ``queued`` and ``stored`` of the environment."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from kneo.clock import isoformat, monotonic
from kneo.errors import QuotaExceeded, Transient
from kneo.records.run import Run
from kneo.spec.models.environment import Environment
from kneo.spec.policy import in_bytes
from kneo.store import runs, stored_content
from kneo.store.engine import Store, Tx

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
