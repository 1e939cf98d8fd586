"""Waiting for rows to change, for any number of requests at once.

One look at the database serves everybody who waits: when what they wait for is told in this process, or after each of its
commits, and every tenth of a second for what other processes did. Nobody who waits holds a thread or a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from kneo.errors import KneoError
from kneo.store.engine import Store, Tx

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
    """Tells those who wait. Belongs to one event loop; ``nudge`` and ``stop`` work from any thread.

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
        self._unlisten: Callable[[], None] = store.listen(self.nudge)

    async def hear(self, feed: Feed[T], seconds: float) -> T | None:
        """Wait until there is something new; ``None`` when the time is over or this process is about to end."""
        if self.stopping:
            return None
        self._loop = asyncio.get_running_loop()
        waiting = _Waiting(feed)
        if feed.notice is not None:
            with self.store.notices.calling(feed.notice, lambda: self._nudge(waiting)):
                return cast("T | None", await self._heard(waiting, seconds))
        return cast("T | None", await self._heard(waiting, seconds))

    async def _heard(self, waiting: _Waiting, seconds: float) -> object | None:
        self._waiting.add(waiting)
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

    def nudge(self) -> None:
        """Say that something was committed."""
        # Most commits happen while nobody waits for just anything, and then cost nothing here.
        self._nudge(*(waiting for waiting in tuple(self._waiting) if waiting.feed.notice is None))

    def _nudge(self, *found: _Waiting) -> None:
        for waiting in found:
            waiting.due = True
        if found and self._loop is not None and not self._nudged.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._nudged.set)

    def stop(self) -> None:
        """Let everybody go who waits, now and from now on."""
        self.stopping = True
        self._unlisten()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        for waiting in self._waiting:
            if not waiting.heard.done():
                waiting.heard.set_result(None)

    async def _look_around(self) -> None:
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
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._nudged.wait()
        except TimeoutError:
            self._all_due()

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
