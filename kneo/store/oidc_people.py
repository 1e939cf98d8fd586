"""Rows of the people of an OpenID Connect issuer and of their groups, and the states of completed sign-ins, kept as hashes until they expire.

A row without groups is a person who has lost every role. The row keeps the time of the token that said so, so that an older token
does not bring the person back.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update

from kneo.clock import isoformat
from kneo.names import person_key
from kneo.records.sign_in import KNOWN_FOR, SIGN_IN_LIFETIME, OidcPerson
from kneo.store.authenticated import body_of
from kneo.store.engine import Tx, insert_ignoring_duplicates, lock_table, upsert
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import oidc_groups, oidc_people, oidc_used_states

_MY_GROUPS = oidc_groups.c.person_key == oidc_people.c.person_key


def find(tx: Tx, name: str) -> OidcPerson | None:
    """Return a person who is still known, in any spelling of the name; ``None`` also for one that is not authentic."""
    key = person_key(name)
    return tx.once((OidcPerson, key), lambda: _find(tx, key))


_FIND = Prepared(
    select(oidc_people, oidc_groups.c.name.label("group"))
    .join(oidc_groups, _MY_GROUPS)
    .where(oidc_people.c.person_key == bindparam("key"), oidc_people.c.seen_at > bindparam("oldest"))
)


def _find(tx: Tx, key: str) -> OidcPerson | None:
    rows = _FIND.rows(tx, {"key": key, "oldest": _oldest(tx)})
    if not rows:
        return None
    first = rows[0]
    groups = frozenset(row.group for row in rows)
    person = OidcPerson(
        name=first.name, issuer=first.issuer, subject=first.subject, groups=groups, issued_at=first.issued_at
    )
    # The MAC covers the name, not its key: the row of one person, under the key of another one, is not theirs.
    is_own = person_key(person.name) == key
    return person if is_own and tx.macs.is_valid(oidc_people.name, _body(person), first.mac) else None


def body_of_row(tx: Tx, row: Row) -> bytes:
    """Return what the MAC of a row covers, with its groups."""
    groups = select(oidc_groups.c.name).where(oidc_groups.c.person_key == row.person_key)
    person = OidcPerson(
        name=row.name,
        issuer=row.issuer,
        subject=row.subject,
        groups=frozenset(tx.connection.execute(groups).scalars()),
        issued_at=row.issued_at,
    )
    return _body(person)


COVERED_FIELDS = ("name", "issuer", "subject", "groups", "issued_at")
"""The fields of a person that the MAC covers: the groups, which are rows of their own, too."""


def _body(person: OidcPerson) -> bytes:
    values = (getattr(person, name) for name in COVERED_FIELDS)
    return body_of([sorted(value) if isinstance(value, frozenset) else value for value in values])


def names_in(tx: Tx, groups: Collection[str], limit: int) -> list[str]:
    """Return the names of known people in any of these groups."""
    query = (
        select(oidc_people.c.name)
        .where(oidc_people.c.seen_at > _oldest(tx))
        .where(oidc_people.c.person_key.in_(select(oidc_groups.c.person_key).where(oidc_groups.c.name.in_(groups))))
        .order_by(oidc_people.c.name)
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def put(tx: Tx, person: OidcPerson) -> bool:
    """Store a person, unless a newer token named the person; return whether subject, issuer or groups are new.

    Of two tokens of the same second, the one without a role counts.
    """
    key = person_key(person.name)
    _lock(tx, key)
    before = find(tx, person.name)
    if before is not None and before.issued_at > person.issued_at:
        return False
    if before is None and (_last_issued(tx, key) or "") >= person.issued_at:
        return False
    _delete(tx, oidc_people.c.seen_at <= _oldest(tx))
    upsert(
        tx,
        oidc_people,
        {"person_key": key},
        name=person.name,
        issuer=person.issuer,
        subject=person.subject,
        issued_at=person.issued_at,
        seen_at=tx.at,
        mac=tx.macs.make(oidc_people.name, _body(person)),
    )
    if before is None or before.groups != person.groups:
        # Also where the stored groups were not authentic.
        tx.connection.execute(delete(oidc_groups).where(oidc_groups.c.person_key == key))
        if person.groups:
            rows = [{"person_key": key, "name": group} for group in sorted(person.groups)]
            tx.connection.execute(insert(oidc_groups), rows)
    return before is None or (before.subject, before.issuer, before.groups) != (
        person.subject,
        person.issuer,
        person.groups,
    )


def remove(tx: Tx, name: str, issued_at: str) -> bool:
    """Take every group from a person, unless a newer token named the person; return whether the person had one."""
    key = person_key(name)
    _lock(tx, key)
    mine = (oidc_people.c.person_key == key) & (oidc_people.c.issued_at <= issued_at)
    if not tx.connection.execute(
        update(oidc_people).where(mine).values(issued_at=issued_at, seen_at=tx.at, mac=None)
    ).rowcount:
        return False
    return tx.connection.execute(delete(oidc_groups).where(oidc_groups.c.person_key == key)).rowcount > 0


def must_remove(tx: Tx, name: str, issued_at: str) -> bool:
    """Return whether a token without a role changes the row of a person: one with groups, or of an older token."""
    last = _last_issued(tx, person_key(name))
    return last is not None and (last < issued_at or find(tx, name) is not None)


def keep_issuer(tx: Tx, issuer: str) -> None:
    """Delete the people of other issuers; with an empty text all."""
    _delete(tx, oidc_people.c.issuer != issuer)


def _lock(tx: Tx, key: str) -> None:
    lock_table(tx, f"oidc_people:{key}")


def _last_issued(tx: Tx, key: str) -> str | None:
    """Return when the last token of a person was issued, also of one without a role."""
    query = select(oidc_people.c.issued_at).where(oidc_people.c.person_key == key, oidc_people.c.seen_at > _oldest(tx))
    return tx.connection.execute(query).scalar()


def _delete(tx: Tx, which: ColumnElement[bool]) -> None:
    keys = select(oidc_people.c.person_key).where(which)
    tx.connection.execute(delete(oidc_groups).where(oidc_groups.c.person_key.in_(keys)))
    tx.connection.execute(delete(oidc_people).where(which))


def _oldest(tx: Tx) -> str:
    return isoformat(tx.now - KNOWN_FOR)


def is_used_state(tx: Tx, state_hash: str) -> bool:
    """Return whether a sign-in at the issuer with this state was completed."""
    row = select(oidc_used_states.c.state_hash).where(oidc_used_states.c.state_hash == state_hash)
    return tx.connection.execute(row).first() is not None


def use_state(tx: Tx, state_hash: str) -> bool:
    """Store the state of a completed sign-in; return whether it is new, which it is for one of two requests at once.

    States whose sign-ins would have expired are deleted.
    """
    expired = isoformat(tx.now - SIGN_IN_LIFETIME)
    tx.connection.execute(delete(oidc_used_states).where(oidc_used_states.c.used_at <= expired))
    return insert_ignoring_duplicates(tx, oidc_used_states, state_hash=state_hash, used_at=tx.at)
