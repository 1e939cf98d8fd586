"""Answers already given under a key, so that asking twice does a thing once. A key belongs to whoever sent it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, delete, select, update

from kneo.clock import isoformat
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.prepared import Prepared
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


_IS = (
    keys.c.principal == bindparam("of_principal"),
    keys.c.scope == bindparam("of_scope"),
    keys.c.key == bindparam("of_key"),
)
_READ = Prepared(select(keys).where(*_IS).with_for_update())
_CHANGE = Prepared(update(keys).where(*_IS))
_RELEASE = Prepared(delete(keys).where(*_IS, keys.c.status.is_(None)))
_FORGET = Prepared(delete(keys).where(*_IS))


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
    row = _READ.first(tx, _is(key))
    if row is None:
        return claim(tx, key, request_digest, lock=lock)
    same_and_lost = row.request_digest == request_digest and row.status is None
    if same_and_lost and row.created_at <= isoformat(tx.now - lock):
        _CHANGE.change(tx, _is(key) | {"created_at": tx.at})
        return None
    return Known(request_digest=row.request_digest, status=row.status, response=row.response, created_at=row.created_at)


def keep(tx: Tx, key: KeyOf, status: int, response: Mapping[str, object]) -> None:
    """Keep the answer to give again."""
    _CHANGE.change(tx, _is(key) | {"status": status, "response": dict(response)})


def release(tx: Tx, key: KeyOf) -> None:
    """Let the key be used again: what was asked was refused, nothing was done."""
    _RELEASE.change(tx, _is(key))


def forget(tx: Tx, older_than: timedelta) -> int:
    """Forget old keys; return how many."""
    before = isoformat(tx.now - older_than)
    old = select(keys.c.principal, keys.c.scope, keys.c.key).where(keys.c.created_at < before).limit(FORGET_BATCH)
    found = tx.connection.execute(old).all()
    _FORGET.change_many(tx, [_is(KeyOf(principal=row.principal, scope=row.scope, key=row.key)) for row in found])
    return len(found)


def _is(key: KeyOf) -> dict[str, object]:
    return {"of_principal": key.principal, "of_scope": key.scope, "of_key": key.key}
