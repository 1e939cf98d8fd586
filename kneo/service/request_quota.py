"""The quota ``requests_per_minute`` of environments, counted in the database over all services."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kneo import registry
from kneo.errors import QuotaExceeded
from kneo.store import usage
from kneo.store.engine import Store, Tx


class CountedRequest:
    """One request, which counts once for an environment, whatever operations it calls.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counted: set[str] = set()

    def limits(self, tx: Tx) -> Mapping[str, int]:
        """Return the quotas of the environments that have one."""
        return registry.request_limits(tx)

    def count(self, environment: str, limit: int) -> None:
        """Count the request. A crash of the machine may lose the count of its last moment.

        Raises:
            QuotaExceeded: as many requests were counted in this minute.
        """
        if environment in self._counted:
            return
        wait = self._store.transact(
            lambda tx: usage.admit_request(tx, environment, usage.SERVICE, requests=limit, tokens=None), durable=False
        )
        if wait is not None:
            msg = f"{environment} had {limit} requests in this minute, which is the quota requests_per_minute of the environment."
            raise QuotaExceeded(
                msg,
                quota="requests_per_minute",
                limit=limit,
                environment=environment,
                retry_after=math.ceil(wait.total_seconds()),
                hint="Try again in the next minute.",
            )
        self._counted.add(environment)
