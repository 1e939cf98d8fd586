"""Rows of the subscriptions of browsers to Web Push. Addresses and keys are sealed where there are data keys."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, delete, insert, or_, select, update

from kneo.names import person_key
from kneo.records.sign_in import MAX_FAILURES, MAX_PER_PERSON, PushSubscription
from kneo.store.engine import Tx, encode_json, lock_table
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import push_subscriptions

_columns = push_subscriptions.c


def lock(tx: Tx) -> None:
    """Lock the subscriptions until the transaction ends, so that none is added to a session that ends meanwhile."""
    lock_table(tx, "push_subscriptions")


def find(tx: Tx, subscription_id: str) -> PushSubscription | None:
    """Read a subscription.

    Raises:
        JournalSealed: its key is not here.
        Untrusted: it was changed in the database.
    """
    row = tx.connection.execute(select(push_subscriptions).where(_columns.id == subscription_id)).first()
    return _read(tx, row) if row is not None else None


def of_person(tx: Tx, name: str) -> Mapping[str, str]:
    """Return the ids of a person's subscriptions by the hashes of their browsers, the oldest first."""
    query = select(_columns.browser_hash, _columns.id).where(_columns.person_key == person_key(name))
    return {row.browser_hash: row.id for row in tx.connection.execute(query.order_by(_columns.id))}


_ANY = Prepared(select(_columns.id).limit(1))


def exist(tx: Tx) -> bool:
    """Return whether there is any subscription."""
    return _ANY.first(tx, {}) is not None


def list_people(tx: Tx, limit: int) -> list[str]:
    """List the names of people with a subscription, one spelling of each."""
    query = select(_columns.person_key, _columns.person).order_by(_columns.person_key, _columns.id)
    names = {row.person_key: row.person for row in tx.connection.execute(query.limit(limit * MAX_PER_PERSON))}
    return list(names.values())[:limit]


def put(tx: Tx, subscription: PushSubscription, replaced: str) -> None:
    """Store a subscription; it ends the previous one of the browser or of the address, and of many the person's oldest.

    Args:
        tx: A transaction that holds ``lock``.
        subscription: The subscription.
        replaced: The hash by which the browser was known before; empty where it was not.
    """
    _end(tx, or_(_columns.browser_hash == replaced, _columns.endpoint_hash == subscription.endpoint_hash))
    for oldest in list(of_person(tx, subscription.person).values())[: -(MAX_PER_PERSON - 1)]:
        end(tx, oldest)
    values = {**vars(subscription), **_sealed(tx, subscription), "endpoint_hash": subscription.endpoint_hash}
    tx.connection.execute(insert(push_subscriptions).values(**values, person_key=person_key(subscription.person)))


def end(tx: Tx, subscription_id: str) -> bool:
    """Delete a subscription; return whether there was one."""
    return _end(tx, _columns.id == subscription_id) > 0


def end_of_session(tx: Tx, session_hash: str, browser_hash: str) -> int:
    """Delete the subscriptions of a session and of its browser; return how many there were.

    Args:
        tx: A transaction that has deleted the session and holds ``lock``.
        session_hash: The session.
        browser_hash: The hash by which the browser is known; empty where it is not.
    """
    return _end(tx, or_(_columns.session_hash == session_hash, _columns.browser_hash == browser_hash))


def end_of_others(tx: Tx, browser_hash: str, name: str) -> int:
    """Delete the subscription of a browser where it is another person's; return how many there were."""
    return _end(tx, (_columns.browser_hash == browser_hash) & (_columns.person_key != person_key(name)))


def end_all(tx: Tx) -> int:
    """Delete all subscriptions; return how many there were."""
    return tx.connection.execute(delete(push_subscriptions)).rowcount


def keep_keys(tx: Tx, key_hashes: Collection[str]) -> int:
    """Delete the subscriptions of other API keys than these; return how many there were."""
    used = tx.connection.execute(select(_columns.key_hash).where(_columns.key_hash.is_not(None)).distinct()).scalars()
    return sum(_end(tx, _columns.key_hash == key_hash) for key_hash in set(used) - set(key_hashes))


def record_success(tx: Tx, subscription_id: str) -> None:
    """Record that the push service accepted a message."""
    tx.connection.execute(
        update(push_subscriptions).where(_columns.id == subscription_id, _columns.failures > 0).values(failures=0)
    )


def record_failure(tx: Tx, subscription_id: str) -> bool:
    """Record that the push service did not accept a message; return whether the subscription ended."""
    mine = _columns.id == subscription_id
    tx.connection.execute(update(push_subscriptions).where(mine).values(failures=_columns.failures + 1))
    return _end(tx, mine & (_columns.failures >= MAX_FAILURES)) > 0


SECRETS = ("endpoint", "p256dh", "auth")
"""The columns with which messages can be sent to a browser."""


def _place(subscription_id: str) -> bytes:
    """Return what sealed secrets are bound to, so that rows cannot be swapped."""
    return encode_json(["push subscription", subscription_id])


def _sealed(tx: Tx, subscription: PushSubscription) -> dict[str, object]:
    """Return the columns of the secrets, which are sealed where there are keys."""
    plain = {name: getattr(subscription, name) for name in SECRETS}
    body = encode_json(plain)
    sealed = tx.data_keys.seal(body, _place(subscription.id))
    return {**plain, "sealed": None} if sealed is body else {**dict.fromkeys(SECRETS, ""), "sealed": sealed}


def _read(tx: Tx, row: Row) -> PushSubscription:
    values = row._asdict()
    sealed = values.pop("sealed")
    del values["endpoint_hash"], values["person_key"]
    if sealed is not None:
        values |= json.loads(tx.data_keys.open(bytes(sealed), _place(row.id)))
    return PushSubscription(**values)


def _end(tx: Tx, which: ColumnElement[bool]) -> int:
    return tx.connection.execute(delete(push_subscriptions).where(which)).rowcount
