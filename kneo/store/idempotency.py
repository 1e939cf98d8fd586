"""Idempotency keys: a request sent twice under one key is executed once. A key belongs to the principal that sent it.

A key is bound to what its request makes (a run, an answered task) in the transaction that makes it. Nothing is claimed
before, so a process that dies or a database that is away leaves nothing to be released: either the transaction was
committed and the key is bound, or nothing was made and the key is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import timedelta

from sqlalchemy import bindparam, delete, select, update

from kneo.clock import isoformat
from kneo.errors import Conflict
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.prepared import Prepared
from kneo.store.tables import idempotency_keys as keys
from kneo.store.tables import runs

FORGET_BATCH = 1_000
"""Old keys that one transaction deletes."""


@dataclass(frozen=True, kw_only=True)
class KeyOf:
    """The principal that sent a key, the kind of request it is for, and the key."""

    principal: str
    scope: str
    key: str


@dataclass(frozen=True, kw_only=True)
class KeyedRequest:
    """One execution of a request that carries a key.

    Attributes:
        key: The key.
        request_digest: Names the request; another request under the same key is refused.
        attempt: Names this execution; no two executions have the same.
        subject: What an earlier execution has made; this one answers for it and makes nothing.
    """

    key: KeyOf
    request_digest: str
    attempt: str
    subject: str | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """The stored row of a key."""

    request_digest: str
    subject: str | None
    """The id of the created object; ``None`` where the request creates none."""
    attempt: str
    status: int | None
    """The answer's HTTP status; ``None`` where no answer was stored."""
    response: Mapping[str, object] | None
    created_at: str


class AlreadyExecuted(Conflict):
    """Another execution of the same request has made its changes. Nothing was changed by this one."""

    default_code = "idempotency_key_in_progress"

    def __init__(self, key: KeyOf) -> None:
        super().__init__(
            "The request with this idempotency key was executed, and its answer is not known yet.",
            hint="Send it again in a moment. If no answer comes, its process has ended: read what it was about.",
            scope=key.scope,
            retry_after=1,
        )


class DifferentRequest(Conflict):
    """The key was sent with another request."""

    default_code = "idempotency_key_conflict"

    def __init__(self, key: KeyOf) -> None:
        super().__init__(
            "This idempotency key was used for another request.",
            hint="Send a new key with a new request.",
            scope=key.scope,
        )


class SecretShownOnce(Conflict):
    """The request was executed, and its response held a secret, which is not stored."""

    default_code = "secret_shown_once"

    def __init__(self, key: KeyOf) -> None:
        super().__init__(
            "The request with this idempotency key was executed. Its response held a secret, which is shown once and not stored.",
            hint="Use the secret of the first response. If it is lost, revoke what the request created, and send the request with a new key.",
            scope=key.scope,
        )


current: ContextVar[KeyedRequest | None] = ContextVar("kneo_keyed_request", default=None)
"""The request that is being executed; set around its execution by the service."""

_IS = (
    keys.c.principal == bindparam("of_principal"),
    keys.c.scope == bindparam("of_scope"),
    keys.c.key == bindparam("of_key"),
)
_READ = Prepared(select(keys).where(*_IS))
_LOCK = Prepared(select(keys).where(*_IS).with_for_update())
_KEEP = Prepared(update(keys).where(*_IS, keys.c.status.is_(None), keys.c.request_digest == bindparam("of_digest")))
_FORGET = Prepared(delete(keys).where(*_IS))


def look(tx: Tx, request: KeyedRequest) -> Known | None:
    """Read the row of a request's key.

    Raises:
        Conflict: ``idempotency_key_conflict``: the key is another request's.
    """
    row = _READ.first(tx, _is(request.key))
    if row is None:
        return None
    if row.request_digest != request.request_digest:
        raise DifferentRequest(request.key)
    return Known(**{item.name: getattr(row, item.name) for item in fields(Known)})


def made() -> str | None:
    """Return what an earlier execution of the current request has made; ``None`` where the request is to be executed."""
    request = current.get()
    return request.subject if request is not None else None


def bind(tx: Tx, subject: str) -> None:
    """Bind the current request's key to what this transaction makes; does nothing where the request carries no key.

    To be called before anything else in every transaction that changes something for a request. The parts of one execution
    (each answer of a batch) share the key, which stays bound to the first of them.

    Args:
        tx: The transaction that makes it.
        subject: The id of what is made or changed.

    Raises:
        AlreadyExecuted: another execution has made its changes. The caller lets the transaction fail.
        Conflict: ``idempotency_key_conflict``: the key is another request's.
    """
    request = current.get()
    if request is None:
        return
    if request.subject is not None:
        raise AlreadyExecuted(request.key)
    # On PostgreSQL this waits until another execution's transaction has ended.
    while not _insert(tx, request, subject=subject, status=None, response=None):
        row = _LOCK.first(tx, _is(request.key))
        if row is None:
            continue
        if row.request_digest != request.request_digest:
            raise DifferentRequest(request.key)
        if row.attempt != request.attempt:
            raise AlreadyExecuted(request.key)
        return


def keep(tx: Tx, request: KeyedRequest, status: int, response: Mapping[str, object]) -> None:
    """Store a request's answer, to be given again. The first answer that is stored stays."""
    of = _is(request.key) | {"of_digest": request.request_digest}
    if not _KEEP.change(tx, of | {"status": status, "response": dict(response)}):
        _insert(tx, request, subject=request.subject, status=status, response=dict(response))


JOINED_CALL = "call"
"""The scope of the bindings by which the same call, sent again without a key, is found."""


def release(tx: Tx, key: KeyOf, subject: str | None = None) -> None:
    """Release a key; with ``subject`` only where it is bound to that."""
    row = _LOCK.first(tx, _is(key))
    if row is not None and subject in {None, row.subject}:
        _FORGET.change(tx, _is(key))


def forget(tx: Tx, older_than: timedelta) -> int:
    """Delete a batch of old keys; return how many. The binding of a call stays until the call has ended."""
    before = isoformat(tx.now - older_than)
    is_open = select(runs.c.id).where(runs.c.id == keys.c.subject, runs.c.completed_at.is_(None)).exists()
    is_old = keys.c.created_at < before
    old = (
        select(keys.c.principal, keys.c.scope, keys.c.key)
        .where(is_old, ~((keys.c.scope == JOINED_CALL) & is_open))
        .limit(FORGET_BATCH)
    )
    rows = tx.connection.execute(old).all()
    _FORGET.change_many(tx, [_is(KeyOf(principal=row.principal, scope=row.scope, key=row.key)) for row in rows])
    return len(rows)


def _insert(
    tx: Tx, request: KeyedRequest, *, subject: str | None, status: int | None, response: Mapping[str, object] | None
) -> bool:
    return insert_ignoring_duplicates(
        tx,
        keys,
        principal=request.key.principal,
        scope=request.key.scope,
        key=request.key.key,
        request_digest=request.request_digest,
        status=status,
        response=response,
        created_at=tx.at,
        subject=subject,
        attempt=request.attempt,
    )


def _is(key: KeyOf) -> dict[str, object]:
    return {"of_principal": key.principal, "of_scope": key.scope, "of_key": key.key}
