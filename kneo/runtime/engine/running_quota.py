"""The quota ``running`` of an environment: how many of its runs are driven at the same time.

A run counts while a driver has it: not while it waits for people, for a time or for its turn, and after the death of its driver
until another one takes it over or it is released. A run beyond the quota has no driver and waits; the end of a session with another
run of the environment makes the first waiting one due.
"""

from __future__ import annotations

from kneo import registry
from kneo.clock import monotonic
from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.store import queue, runs
from kneo.store.engine import Tx, lock_table

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
