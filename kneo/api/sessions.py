"""Operations on sessions of agents: list them, and read or delete what their agents remember."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo.api.conversation_messages import ContentTexts
from kneo.api.operation import Context, operation
from kneo.api.page import Limit, Offset, Word, view_of
from kneo.api.subjects import SESSION
from kneo.errors import InvalidValue, NotFound
from kneo.records.agent_session import AgentSession, SessionKey
from kneo.roles import EVERYTHING
from kneo.store import agent_sessions, audit

Requester = Annotated[
    str | None, Field(max_length=200, description="The requester of the sessions' runs. Left out: the caller.")
]


@dataclass(frozen=True, kw_only=True)
class SessionView:
    """A session. ``environment`` is null where its runs have none; ``message_count`` is over all agents."""

    session_id: str
    environment: str | None
    requester: str
    message_count: int
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, session: AgentSession) -> SessionView:
        """Build the view of a session."""
        return cls(
            session_id=session.key.session_id,
            environment=session.key.environment or None,
            requester=session.key.requester,
            message_count=session.messages,
            created_at=session.created_at,
            updated_at=session.updated_at,
        )


@dataclass(frozen=True, kw_only=True)
class SessionPageView:
    """A page of sessions, the last used first."""

    sessions: list[SessionView]
    count: int
    total: int
    limit: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class DeletedSessionsView:
    """The sessions that were deleted: one for each environment."""

    session_id: str
    requester: str
    environments: list[str | None]
    message_count: int


@operation("GET", "/sessions", scope="runs:read", about=SESSION)
def list_sessions(
    context: Context,
    *,
    environment: Word | None = None,
    requester: Requester = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> SessionPageView:
    """List the sessions whose messages agents remember, without the messages."""
    with context.store.read() as tx:
        found, total = agent_sessions.list_sessions(
            tx, requester or context.actor, environment=environment, limit=limit, offset=offset
        )
    views = [SessionView.of(session) for session in found]
    return SessionPageView(sessions=views, count=len(views), total=total, limit=limit, offset=offset)


@dataclass(frozen=True, kw_only=True)
class SessionMessageView:
    """A message of a session: the input of an agent's step, or its answer."""

    number: int
    agent: str
    role: str
    text: str
    run_id: str
    created_at: str


@dataclass(frozen=True, kw_only=True)
class SessionMessagesView:
    """A page of messages; ``truncated`` where their texts are longer than a response may be."""

    session_id: str
    environment: str | None
    requester: str
    messages: list[SessionMessageView]
    count: int
    total: int
    limit: int
    offset: int
    truncated: bool


@operation("GET", "/sessions/{session_id}/messages", scope="runs:content", errors=(404,), about=SESSION)
def list_session_messages(
    context: Context,
    session_id: str,
    *,
    environment: Annotated[
        str | None,
        Field(max_length=200, description="The environment. Left out: runs without an environment, or the only one."),
    ] = None,
    requester: Requester = None,
    agent: Annotated[str | None, Field(max_length=200, description="Only the messages of this agent.")] = None,
    whole: Annotated[bool, Field(description="Show personal data too. Secrets are never shown.")] = False,
    limit: Limit = 100,
    offset: Offset = 0,
) -> SessionMessagesView:
    """Read what agents remember of a session. The session of another requester needs every scope (`*`)."""
    owner = _owner(context, requester)
    with context.store.read() as tx:
        keys = agent_sessions.find_keys(tx, owner, session_id, environment=environment)
        if not keys:
            raise _not_found(owner, session_id, environment)
        key = _chosen(keys)
        messages, total = agent_sessions.list_messages(tx, key, agent=agent, limit=limit, offset=offset)
    texts = ContentTexts(personal=not whole)
    views = [
        view_of(SessionMessageView, message, role=message.role, text=texts.shown(message.text)) for message in messages
    ]
    return SessionMessagesView(
        session_id=session_id,
        environment=key.environment or None,
        requester=owner,
        messages=views,
        count=len(views),
        total=total,
        limit=limit,
        offset=offset,
        truncated=texts.truncated,
    )


def _owner(context: Context, requester: str | None) -> str:
    """Return whose session is meant.

    Raises:
        Forbidden: it is another requester's, and the caller does not have every scope.
    """
    owner = requester or context.actor
    if owner != context.actor:
        context.principal.require(EVERYTHING)
    return owner


def _chosen(keys: Sequence[SessionKey]) -> SessionKey:
    """Return the only session of a name, or the one without an environment.

    Raises:
        InvalidValue: several environments have one.
    """
    if len(keys) == 1 or not keys[0].environment:
        return keys[0]
    names = ", ".join(key.environment for key in keys)
    msg = f"Several environments have this session: {names}."
    raise InvalidValue(msg, hint="Name one of them as environment.", field="environment")


def _not_found(owner: str, session_id: str, environment: str | None) -> NotFound:
    where = f" in {environment[:80]}" if environment is not None else ""
    msg = f"{owner} has no session {session_id[:80]!r}{where}."
    return NotFound(msg, code="session_not_found", hint="List the sessions: kneo sessions list.")


@operation("DELETE", "/sessions/{session_id}", scope="runs:write", errors=(404,), about=SESSION)
def delete_session(
    context: Context,
    session_id: str,
    *,
    environment: Annotated[
        str | None, Field(max_length=200, description="Only in this environment. Left out: in every one.")
    ] = None,
    requester: Requester = None,
) -> DeletedSessionsView:
    """Delete what agents remember of a session. Its runs stay. The session of another requester needs every scope (`*`)."""
    owner = _owner(context, requester)
    with context.store.write() as tx:
        deleted = {
            key: count
            for key in agent_sessions.find_keys(tx, owner, session_id, environment=environment)
            if (count := agent_sessions.delete_session(tx, key)) is not None
        }
        for key, count in deleted.items():
            facts = {"session_id": session_id, "requester": owner, "message_count": count}
            audit.record(
                tx, "session.deleted", actor=context.actor, environment=key.environment or None, metadata=facts
            )
    if not deleted:
        raise _not_found(owner, session_id, environment)
    environments = [key.environment or None for key in deleted]
    return DeletedSessionsView(
        session_id=session_id, requester=owner, environments=environments, message_count=sum(deleted.values())
    )
