"""A database that is opened by the first who needs it: checking a spec must not make one."""

from __future__ import annotations

from functools import cached_property

from kneo.clock import SystemClock
from kneo.store.engine import FindKey, Store, no_key
from kneo.store.migrate import open_store


class Database:
    """Where runs and human tasks are kept.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…``.
        find_key: Finds the key that receipts of decisions are signed with; without one there are none.
    """

    def __init__(self, url: str, find_key: FindKey = no_key) -> None:
        self._url = url
        self._find_key = find_key

    @cached_property
    def store(self) -> Store:
        """The open database, brought up to date."""
        return open_store(self._url, SystemClock(), self._find_key)

    def close(self) -> None:
        """Close it, if anybody opened it; it opens again for whoever needs it next."""
        store: Store | None = self.__dict__.pop("store", None)
        if store is not None:
            store.close()
