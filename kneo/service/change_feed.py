"""Waiting for rows to change, for any number of requests at once.

What is told in this process with all there is to know needs no look at the database. Otherwise one look serves everybody
who waits: when something is told or, for those who wait for just anything, committed, and every tenth of a second for what
other processes did. Nobody who waits holds a thread or a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from kneo.clock import monotonic
from kneo.errors import KneoError
from kneo.store.engine import Store, Tx
from kneo.store.notifier import ANYTHING

LOOK_SECONDS = 0.1
"""How often somebody looks what other processes have changed."""

AWAY_SECONDS = 1.0
"""How long to leave a database alone that does not answer."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Feed(Protocol[T_co]):
    """Something to wait for. Those of a kind that wait together are looked up together."""

    @property
    def notice(self) -> str | None:
        """The name under which ``Store.notices`` tells of it; None where any commit may be it."""
        ...

    def heed(self, news: object) -> T_co | None:
        """Say what is new for this feed when something is told; ``None`` where the database has to be asked."""
        ...

    @classmethod
    def look(cls, tx: Tx, feeds: Sequence[Any]) -> Sequence[T_co | None]:
        """Say what is new for each of these feeds of one's own class; ``None`` for nothing."""
        ...


@dataclass(eq=False)
class _Waiting:
    feed: Feed[object]
    due: bool = True
    """Whether to look for it the next time anybody looks."""
    heard: asyncio.Future[object] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class News:
    """Tells those who wait. Belongs to one event loop; ``stop`` works from any thread.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stopping = False
        self._waiting: set[_Waiting] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nudged = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(store.notices.calling(ANYTHING, self._nudge))

    def mark(self) -> int:
        """Return a mark for ``hear``."""
        return self.store.notices.mark()

    async def hear(self, feed: Feed[T], seconds: float, since: int | None = None) -> T | None:
        """Wait until there is something new; ``None`` when the time is over or this process is about to end.

        Args:
            feed: What for.
            seconds: How long.
            since: A mark from before it could happen. Without one the database is asked first whether it has.
        """
        if self.stopping:
            return None
        self._loop = asyncio.get_running_loop()
        waiting = _Waiting(feed)
        if feed.notice is None:
            return cast("T | None", await self._heard(waiting, seconds))
        notices = self.store.notices
        with notices.calling(feed.notice, partial(self._told, waiting)):
            told = notices.since(feed.notice, since) if since is not None else None
            waiting.due = told is None
            for news in told or ():
                self._heed(waiting, feed.heed(news))
            return cast("T | None", await self._heard(waiting, seconds))

    def _told(self, waiting: _Waiting, news: object) -> None:
        """Hear what is told, in the thread that tells it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heed, waiting, waiting.feed.heed(news))

    def _heed(self, waiting: _Waiting, found: object | None) -> None:
        if found is None:
            waiting.due = True
            self._nudged.set()
        elif not waiting.heard.done():
            waiting.heard.set_result(found)

    async def _heard(self, waiting: _Waiting, seconds: float) -> object | None:
        if waiting.heard.done():
            return waiting.heard.result()
        self._waiting.add(waiting)
        if waiting.due:
            self._nudged.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_around())
        try:
            async with asyncio.timeout(seconds):
                return await waiting.heard
        except TimeoutError:
            return None
        finally:
            self._waiting.discard(waiting)

    def _nudge(self, _: object) -> None:
        # Most commits happen while nobody waits for just anything, and then cost nothing here.
        found = [waiting for waiting in tuple(self._waiting) if waiting.feed.notice is None]
        for waiting in found:
            waiting.due = True
        if found and self._loop is not None and not self._nudged.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._nudged.set)

    def stop(self) -> None:
        """Let everybody go who waits, now and from now on."""
        self.stopping = True
        self._listening.close()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        for waiting in self._waiting:
            if not waiting.heard.done():
                waiting.heard.set_result(None)

    async def _look_around(self) -> None:
        all_due = monotonic() + LOOK_SECONDS
        while self._waiting:
            self._nudged.clear()
            due = [waiting for waiting in self._waiting if waiting.due]
            for waiting in due:
                waiting.due = False
            try:
                found = await asyncio.to_thread(self._look, [waiting.feed for waiting in due]) if due else {}
            except KneoError:
                await asyncio.sleep(AWAY_SECONDS)
                self._all_due()
                continue
            for waiting in due:
                news = found.get(id(waiting.feed))
                if news is not None and not waiting.heard.done():
                    waiting.heard.set_result(news)
                    self._waiting.discard(waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(all_due - monotonic()):
                    await self._nudged.wait()
            # By the clock, however much is told meanwhile: other processes must be heard beside a busy one.
            if monotonic() >= all_due:
                self._all_due()
                all_due = monotonic() + LOOK_SECONDS

    def _all_due(self) -> None:
        for waiting in self._waiting:
            waiting.due = True

    def _look(self, feeds: Sequence[Feed[object]]) -> Mapping[int, object | None]:
        kinds: dict[type[Feed[object]], list[Feed[object]]] = {}
        for feed in feeds:
            kinds.setdefault(type(feed), []).append(feed)
        found: dict[int, object | None] = {}
        with self.store.read() as tx:
            for kind, alike in kinds.items():
                found |= dict(zip((id(feed) for feed in alike), kind.look(tx, alike), strict=True))
        return found
