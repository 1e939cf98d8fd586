"""The journal of a run's agents, and the session of a run: the messages that its agents begin with, the turns that it adds.

A run adds its turns in the transaction that ends it, so what a gate or a guardrail holds back is in no session before it passed,
and a run that fails or is stopped leaves nothing. Steps append to the journal from the event loop; the session's thread writes,
so that everything about a run has one writer and one fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from kneo.records.agent_session import SessionKey, SessionMessage, SessionSummary, finished_turns
from kneo.records.conversation import ConversationEntry
from kneo.records.run import NewTrace, Run
from kneo.records.task import TaskStatus
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.threads import in_thread
from kneo.store import agent_journal, agent_sessions, history, tasks
from kneo.store.engine import Store, Tx
from kneo.trust.sealing import JournalSealed


def session_key(run: Run) -> SessionKey | None:
    """Return the session of a run; ``None`` where it has none."""
    session_id = run.metadata.get("session_id")
    if not isinstance(session_id, str) or not session_id:
        return None
    return SessionKey(environment=run.environment or "", requester=run.requester, session_id=session_id)


def session_history(store: Store, run: Run) -> StoredHistory | None:
    """Return the history of a run's session; ``None`` where it has none."""
    key, forked = session_key(run), run.metadata.get("forked_from")
    # A fork takes another way from a point of its parent: what the parent answered behind it is not its past.
    parent = str(forked["run_id"]) if isinstance(forked, Mapping) else ""
    return None if key is None else StoredHistory(store=store, key=key, parent=parent)


@contextmanager
def _unsealed(store: Store) -> Iterator[Tx]:
    """Read texts that may be sealed; a run whose key is not here is released, and waits for a worker that has it."""
    try:
        with store.read() as tx:
            yield tx
    except JournalSealed as sealed:
        raise CodeUnavailable(sealed.message, code=sealed.code, hint=sealed.hint) from None


@dataclass(frozen=True, kw_only=True)
class StoredHistory:
    """The messages of a session in the database; the port ``SessionHistory`` of agents.

    Attributes:
        parent: The run that the run was forked from; empty where there is none.
    """

    store: Store
    key: SessionKey
    parent: str = ""

    def newest(self, agent: str, *, after: int = 0, limit: int) -> Sequence[SessionMessage]:
        with _unsealed(self.store) as tx:
            return agent_sessions.newest_messages(
                tx, self.key, agent, after=after, without_run=self.parent, limit=limit
            )

    def count(self, agent: str) -> int:
        with self.store.read() as tx:
            return agent_sessions.count_messages(tx, self.key, agent)

    def summary(self, agent: str) -> SessionSummary | None:
        with _unsealed(self.store) as tx:
            return agent_sessions.find_summary(tx, self.key, agent)

    async def keep_summary(self, last: SessionMessage, text: str) -> None:
        keep = partial(agent_sessions.keep_summary, key=self.key, last=last, text=text)
        await in_thread(lambda: self.store.transact(keep))


def add_to_session(tx: Tx, run: Run) -> None:
    """Add the turns of a run that succeeded to its session; the run's steps are written."""
    key = session_key(run)
    if key is None:
        return
    entries = agent_journal.list_recollections(tx, run.id)
    if not entries:
        return
    decided = [task for task in tasks.of_run(tx, run.id, TaskStatus) if task.decision is not None]
    turns = finished_turns(run.id, history.list_steps(tx, run.id), entries, decided)
    agent_sessions.append(tx, key, run.id, turns)


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
