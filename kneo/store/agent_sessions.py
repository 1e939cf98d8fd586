"""Sessions of agents: messages that runs leave for later runs of the same requester, environment and session.

The row of the session is locked first by everything that changes a session, so runs that end at the same time and a deletion
come one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias

from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, func, insert, select, update

from kneo.clock import isoformat
from kneo.records.agent_session import AgentSession, FinishedTurn, SessionKey, SessionMessage, SessionSummary
from kneo.store.authenticated import check, with_mac
from kneo.store.engine import Tx, encode_json, insert_ignoring_duplicates, upsert
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import agent_sessions, session_messages, session_summaries

MAX_TEXT_CHARS = 50_000
"""Characters of one message; the rest is cut."""

PRUNE_BATCH = 500
"""Sessions that one transaction deletes."""

Identity: TypeAlias = Mapping[str, object]
"""The columns of a key."""


def _is(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.environment == bindparam("of_environment"),
        table.c.requester == bindparam("of_requester"),
        table.c.session_id == bindparam("of_session_id"),
    )


def _of(key: SessionKey) -> Identity:
    return {f"of_{name}": value for name, value in vars(key).items()}


_LOCK = Prepared(select(agent_sessions).where(_is(agent_sessions)).with_for_update())
_CHANGE = Prepared(update(agent_sessions).where(_is(agent_sessions)))
_INSERT_MESSAGE = Prepared(insert(session_messages))


def append(tx: Tx, key: SessionKey, run_id: str, turns: Sequence[FinishedTurn]) -> None:
    """Add the turns of a run, which ends with this transaction."""
    messages = [(turn.agent, role, _cut(text)) for turn in turns for role, text in turn.messages]
    if not messages:
        return
    number = _lock(tx, key).last_number
    rows = [
        with_mac(
            tx,
            session_messages,
            {
                **vars(key),
                "agent": agent,
                "number": n,
                "role": role,
                **_stored(tx, text, _place(key, agent, n)),
                "run_id": run_id,
                "created_at": tx.at,
            },
        )
        for n, (agent, role, text) in enumerate(messages, number + 1)
    ]
    _INSERT_MESSAGE.insert(tx, *rows)
    _CHANGE.change(tx, {**_of(key), "last_number": number + len(rows), "updated_at": tx.at})


def _lock(tx: Tx, key: SessionKey) -> Row:
    """Create a session where there is none, and lock its row."""
    while (session := _LOCK.first(tx, _of(key))) is None:
        # A deletion that commits in between removes the row once more.
        insert_ignoring_duplicates(tx, agent_sessions, **vars(key), last_number=0, created_at=tx.at, updated_at=tx.at)
    return session


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]}[cut: {len(text)} characters in all]"


def _place(key: SessionKey, agent: str, number: int, part: str = "message") -> bytes:
    """Return what a sealed text is bound to, so that rows cannot be swapped."""
    return encode_json([part, key.environment, key.requester, key.session_id, agent, number])


def _stored(tx: Tx, text: str, place: bytes) -> dict[str, object]:
    """Return the columns of a text, which is sealed where there are keys."""
    body = text.encode()
    sealed = tx.data_keys.seal(body, place)
    return {"text": text, "sealed": None} if sealed is body else {"text": "", "sealed": sealed}


def _read(tx: Tx, row: Row, place: bytes) -> str:
    """Return the text of a row.

    Raises:
        JournalSealed: its key is not here.
        Untrusted: it was changed in the database.
    """
    if row.sealed is None:
        return str(row.text)
    return tx.data_keys.open(bytes(row.sealed), place).decode()


def _message(tx: Tx, key: SessionKey, row: Row) -> SessionMessage:
    """Return the message of a row.

    Raises:
        Untrusted, Invalid: a process with the service key did not write it; see ``kneo.store.authenticated``.
    """
    check(tx, session_messages, row)
    return SessionMessage(
        number=row.number,
        agent=row.agent,
        role=row.role,
        text=_read(tx, row, _place(key, row.agent, row.number)),
        run_id=row.run_id,
        created_at=row.created_at,
    )


_NEWEST = Prepared(
    select(session_messages)
    .where(
        _is(session_messages),
        session_messages.c.agent == bindparam("of_agent"),
        session_messages.c.number > bindparam("after"),
        session_messages.c.run_id != bindparam("not_of_run"),
    )
    .order_by(session_messages.c.number.desc())
    .limit(bindparam("most"))
)


def newest_messages(
    tx: Tx, key: SessionKey, agent: str, *, after: int = 0, without_run: str = "", limit: int
) -> tuple[SessionMessage, ...]:
    """Read the newest messages of an agent, the oldest of them first.

    Args:
        tx: An open transaction.
        key: The session.
        agent: The agent's name.
        after: Only messages with higher numbers.
        without_run: A run whose messages are left out.
        limit: The largest number of messages.
    """
    names = {"of_agent": agent, "after": after, "not_of_run": without_run, "most": limit}
    rows = _NEWEST.rows(tx, {**_of(key), **names})
    return tuple(_message(tx, key, row) for row in reversed(rows))


def list_messages(
    tx: Tx, key: SessionKey, *, agent: str | None = None, limit: int, offset: int = 0
) -> tuple[tuple[SessionMessage, ...], int]:
    """Return a page of the messages of a session in their order, and the count of all."""
    where = [
        session_messages.c.environment == key.environment,
        session_messages.c.requester == key.requester,
        session_messages.c.session_id == key.session_id,
    ]
    if agent is not None:
        where.append(session_messages.c.agent == agent)
    page = select(session_messages).where(*where).order_by(session_messages.c.number).limit(limit).offset(offset)
    rows = tx.connection.execute(page).all()
    total = tx.connection.execute(select(func.count()).select_from(session_messages).where(*where)).scalar_one()
    return tuple(_message(tx, key, row) for row in rows), total


_COUNT = Prepared(
    select(func.count().label("messages"))
    .select_from(session_messages)
    .where(_is(session_messages), session_messages.c.agent == bindparam("of_agent"))
)


def count_messages(tx: Tx, key: SessionKey, agent: str) -> int:
    """Count the messages of an agent."""
    row = _COUNT.first(tx, {**_of(key), "of_agent": agent})
    assert row is not None
    count: int = row.messages
    return count


_SUMMARY = Prepared(
    select(session_summaries).where(_is(session_summaries), session_summaries.c.agent == bindparam("of_agent"))
)
_MESSAGE = Prepared(
    select(session_messages.c.run_id).where(
        _is(session_messages),
        session_messages.c.agent == bindparam("of_agent"),
        session_messages.c.number == bindparam("of_number"),
    )
)


def find_summary(tx: Tx, key: SessionKey, agent: str) -> SessionSummary | None:
    """Read the summary of an agent's earlier messages.

    Raises:
        Untrusted, Invalid: a process with the service key did not write it; see ``kneo.store.authenticated``.
    """
    row = _SUMMARY.first(tx, {**_of(key), "of_agent": agent})
    if row is None:
        return None
    check(tx, session_summaries, row)
    return SessionSummary(number=row.number, text=_read(tx, row, _place(key, agent, row.number, "summary")))


def keep_summary(tx: Tx, key: SessionKey, last: SessionMessage, text: str) -> bool:
    """Write the summary of all messages of an agent up to one; return whether it was written.

    It is not where a summary reaches further, or where the message was deleted meanwhile.
    """
    session = _LOCK.first(tx, _of(key))
    message = _MESSAGE.first(tx, {**_of(key), "of_agent": last.agent, "of_number": last.number})
    known = _SUMMARY.first(tx, {**_of(key), "of_agent": last.agent})
    is_kept = session is not None and message is not None and message.run_id == last.run_id
    if not is_kept or (known is not None and known.number >= last.number):
        return False
    names = {**vars(key), "agent": last.agent}
    stored = _stored(tx, _cut(text), _place(key, last.agent, last.number, "summary"))
    row = with_mac(tx, session_summaries, {**names, "number": last.number, **stored, "created_at": tx.at})
    upsert(tx, session_summaries, names, **{name: value for name, value in row.items() if name not in names})
    return True


def list_sessions(
    tx: Tx, requester: str, *, environment: str | None = None, limit: int, offset: int = 0
) -> tuple[tuple[AgentSession, ...], int]:
    """Return a page of a requester's sessions, the last used first, and the count of all."""
    where = [agent_sessions.c.requester == requester]
    if environment is not None:
        where.append(agent_sessions.c.environment == environment)
    if tx.reach is not None:
        where.append(agent_sessions.c.environment.in_(sorted(tx.reach)))
    same = [agent_sessions.c[name] == session_messages.c[name] for name in ("environment", "requester", "session_id")]
    messages = select(func.count()).select_from(session_messages).where(*same).scalar_subquery()
    page = select(agent_sessions, messages.label("messages")).where(*where)
    order = (agent_sessions.c.updated_at.desc(), agent_sessions.c.environment, agent_sessions.c.session_id)
    rows = tx.connection.execute(page.order_by(*order).limit(limit).offset(offset)).all()
    total = tx.connection.execute(select(func.count()).select_from(agent_sessions).where(*where)).scalar_one()
    found = tuple(
        AgentSession(
            key=_key(row),
            messages=row.messages,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    )
    return found, total


def _key(row: Row) -> SessionKey:
    return SessionKey(environment=row.environment, requester=row.requester, session_id=row.session_id)


def find_keys(tx: Tx, requester: str, session_id: str, *, environment: str | None = None) -> tuple[SessionKey, ...]:
    """Return the sessions of a name of one requester: one for each environment, in their order."""
    where = [agent_sessions.c.requester == requester, agent_sessions.c.session_id == session_id]
    if environment is not None:
        where.append(agent_sessions.c.environment == environment)
    named = select(agent_sessions.c.environment).where(*where).order_by(agent_sessions.c.environment)
    names = tx.connection.execute(named).scalars()
    return tuple(
        SessionKey(environment=name, requester=requester, session_id=session_id) for name in names if tx.sees(name)
    )


_DELETE_MESSAGES = Prepared(delete(session_messages).where(_is(session_messages)))
_DELETE_SUMMARIES = Prepared(delete(session_summaries).where(_is(session_summaries)))
_DELETE = Prepared(delete(agent_sessions).where(_is(agent_sessions)))


def delete_session(tx: Tx, key: SessionKey) -> int | None:
    """Delete a session; return the number of its messages, ``None`` where there is no such session."""
    if _LOCK.first(tx, _of(key)) is None:
        return None
    messages = _DELETE_MESSAGES.change(tx, _of(key))
    _DELETE_SUMMARIES.change(tx, _of(key))
    _DELETE.change(tx, _of(key))
    return messages


def prune(tx: Tx, older_than: timedelta) -> int:
    """Delete sessions without a new message for a time, a batch of them; return how many."""
    before = isoformat(tx.now - older_than)
    old = select(agent_sessions).where(agent_sessions.c.updated_at < before).limit(PRUNE_BATCH)
    # Locked, so that a session that a run adds to at this moment stays.
    rows = tx.connection.execute(old.with_for_update(skip_locked=True)).all()
    for row in rows:
        delete_session(tx, _key(row))
    return len(rows)
