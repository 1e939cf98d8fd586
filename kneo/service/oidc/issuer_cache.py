"""The keys of the issuer, kept in the process: fetched in a thread, at most once a minute, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta

from kneo.clock import Clock
from kneo.service.oidc.discovery import IssuerKey, IssuerMetadata, IssuerUnavailable

log = logging.getLogger("kneo.service")

REFRESH = timedelta(minutes=10)
"""Age at which keys are fetched again, so that a key that the issuer has withdrawn is soon refused."""

AGAIN = timedelta(minutes=1)
"""Time between two fetches because of tokens with an unknown key: strangers decide how many of them come."""

RETRY = timedelta(seconds=5)
"""Time between two fetches as long as none has succeeded."""

WAIT_SECONDS = 15.0
"""The longest time that a request waits for a fetch."""


class IssuerCache:
    """The metadata of the issuer. Requests wait for a fetch only where they need what it brings.

    Args:
        fetch: Fetches the metadata; called in a thread of its own, once at a time.
        clock: The source of the time.
    """

    def __init__(self, fetch: Callable[[], IssuerMetadata], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._known: IssuerMetadata | None = None
        self._problem = "The issuer of tokens has not responded yet."
        self._fetched: datetime | None = None
        self._running: Future[None] | None = None

    async def metadata(self) -> IssuerMetadata:
        """Return the metadata.

        Raises:
            IssuerUnavailable: none was fetched yet, and the issuer is away.
        """
        known = self._known
        running = self._begin(REFRESH if known is not None else RETRY)
        if known is None:
            await _finished(running)
            known = self._known
        if known is None:
            raise IssuerUnavailable(self._problem, hint="Tokens are refused until it responds; API keys work.")
        return known

    async def find_key(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """Return the key that signs a token; ``None`` where the issuer publishes no such key.

        Raises:
            IssuerUnavailable: no key was fetched yet, and the issuer is away.
        """
        key = (await self.metadata()).find_key(key_id, algorithm)
        if key is None and (running := self._begin(AGAIN)) is not None:
            await _finished(running)
            key = (await self.metadata()).find_key(key_id, algorithm)
        return key

    def _begin(self, age: timedelta) -> Future[None] | None:
        """Begin to fetch, unless the last fetch is younger; return the running fetch."""
        with self._lock:
            if self._running is None and (self._fetched is None or self._clock.now() - self._fetched >= age):
                self._fetched = self._clock.now()
                self._running = Future()
                threading.Thread(target=self._run, args=(self._running,), name="oidc-issuer", daemon=True).start()
            return self._running

    def _run(self, done: Future[None]) -> None:
        known, problem = self._known, self._problem
        try:
            known = self._fetch()
        except Exception as error:  # noqa: BLE001 - whatever it is, requests that wait must go on
            problem = str(error)[:500]
            log.warning("the issuer of tokens could not be read: %s", problem)
        with self._lock:
            self._known, self._problem, self._running = known, problem, None
        done.set_result(None)


async def _finished(running: Future[None] | None) -> None:
    """Wait for a fetch, for a bounded time and without ending it."""
    if running is not None:
        await asyncio.wait([asyncio.wrap_future(running)], timeout=WAIT_SECONDS)
