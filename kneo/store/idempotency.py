"""Answers already given under a key, so that asking twice does a thing once. A key belongs to whoever sent it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, select, update

from kneo.clock import isoformat
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.tables import idempotency_keys as keys

FORGET_BATCH = 1_000
"""Old keys that one transaction forgets."""


@dataclass(frozen=True, kw_only=True)
class KeyOf:
    """Whose key it is, for what kind of request, and the key."""

    principal: str
    scope: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a key that somebody used before."""

    request_digest: str
    status: int | None
    """The answer's HTTP status; ``None`` while the request is under way."""
    response: Mapping[str, object] | None
    created_at: str


def claim(tx: Tx, key: KeyOf, request_digest: str, *, lock: timedelta) -> Known | None:
    """Take a key for a request that is about to be done.

    Args:
        tx: An open transaction.
        key: The key.
        request_digest: Names the request; another one under the same key is somebody's mistake.
        lock: After this long, a request that never ended may be done again.

    Returns:
        ``None`` when the request may be done now; else what is known of the earlier one.
    """
    values = {"request_digest": request_digest, "status": None, "response": None, "created_at": tx.at}
    if insert_ignoring_duplicates(tx, keys, principal=key.principal, scope=key.scope, key=key.key, **values):
        return None
    row = tx.connection.execute(select(keys).where(*_is(key)).with_for_update()).first()
    if row is None:
        return claim(tx, key, request_digest, lock=lock)
    same_and_lost = row.request_digest == request_digest and row.status is None
    if same_and_lost and row.created_at <= isoformat(tx.now - lock):
        tx.connection.execute(update(keys).where(*_is(key)).values(created_at=tx.at))
        return None
    return Known(request_digest=row.request_digest, status=row.status, response=row.response, created_at=row.created_at)


def keep(tx: Tx, key: KeyOf, status: int, response: Mapping[str, object]) -> None:
    """Keep the answer to give again."""
    tx.connection.execute(update(keys).where(*_is(key)).values(status=status, response=dict(response)))


def release(tx: Tx, key: KeyOf) -> None:
    """Let the key be used again: what was asked was refused, nothing was done."""
    tx.connection.execute(delete(keys).where(*_is(key), keys.c.status.is_(None)))


def forget(tx: Tx, older_than: timedelta) -> int:
    """Forget old keys; return how many."""
    before = isoformat(tx.now - older_than)
    old = select(keys.c.principal, keys.c.scope, keys.c.key).where(keys.c.created_at < before).limit(FORGET_BATCH)
    found = tx.connection.execute(old).all()
    for row in found:
        tx.connection.execute(delete(keys).where(*_is(KeyOf(principal=row.principal, scope=row.scope, key=row.key))))
    return len(found)


def _is(key: KeyOf) -> tuple[ColumnElement[bool], ...]:
    return (keys.c.principal == key.principal, keys.c.scope == key.scope, keys.c.key == key.key)
