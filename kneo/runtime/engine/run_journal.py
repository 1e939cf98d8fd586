"""The journal of a run's agents, as one session reads it and writes it.

Steps append from the event loop; the session's thread writes, so that everything about a run has one writer and one fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kneo.records.conversation import ConversationEntry
from kneo.records.run import NewTrace
from kneo.runtime.steps.code import CodeUnavailable
from kneo.store import agent_journal
from kneo.store.engine import Store
from kneo.trust.sealing import JournalSealed


@dataclass(frozen=True, kw_only=True, eq=False)
class JournalAppend:
    """Entries and trace events of a step that is under way, until the session has written them."""

    entries: Sequence[ConversationEntry]
    trace: Sequence[NewTrace]
    durable: bool
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _done: asyncio.Future[None] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_done", self._loop.create_future())

    async def written(self) -> None:
        """Wait until the entries are written.

        Raises:
            asyncio.CancelledError: the session was stopped; nothing was written.
            KneoError: the entries cannot be written.
        """
        await self._done

    def resolve(self, error: Exception | None = None) -> None:
        """End the wait; from any thread."""
        self._call(lambda: self._done.set_exception(error) if error is not None else self._done.set_result(None))

    def cancel(self) -> None:
        """End the wait without a write; from any thread."""
        self._call(self._done.cancel)

    def _call(self, settle: Callable[[], object]) -> None:
        def unless_done() -> None:
            if not self._done.done():
                settle()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(unless_done)


@dataclass(frozen=True, kw_only=True)
class RunJournal:
    """The journal of one conversation; the port ``Journal`` of agents.

    Args:
        submit: Hands an append to the session of the run.
    """

    store: Store
    run_id: str
    conversation: str
    submit: Callable[[JournalAppend], object]

    def load(self) -> tuple[ConversationEntry, ...]:
        try:
            with self.store.read() as tx:
                return agent_journal.load(tx, self.run_id, self.conversation)
        except JournalSealed as sealed:
            # The run is released, and waits for a worker that has the key.
            raise CodeUnavailable(sealed.message, code=sealed.code, hint=sealed.hint) from None

    def below(self, call_key: str) -> RunJournal:
        return replace(self, conversation=f"{self.conversation}>{call_key}")

    async def append(self, *entries: ConversationEntry, trace: Sequence[NewTrace] = (), durable: bool = True) -> None:
        own = [replace(entry, conversation=self.conversation) for entry in entries]
        append = JournalAppend(entries=own, trace=tuple(trace), durable=durable)
        self.submit(append)
        await append.written()
