"""Rows of standing grants, which are written whole with their MAC, and of their uses, which are only added.

Locks are taken in one order: a run, then grants by id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType

from sqlalchemy import ColumnElement, bindparam, func, insert, or_, select, update

from kneo.records.grant import Grant, GrantEnd, GrantLimits, GrantStatus, GrantUse
from kneo.records.run import ReleaseRef
from kneo.records.task import DecisionKind, Vote
from kneo.store import audit
from kneo.store.authenticated import check, is_authentic, with_mac
from kneo.store.engine import Tx
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import grant_uses, grants

_NAMES = [item.name for item in fields(Grant)]


def insert_grant(tx: Tx, grant: Grant) -> None:
    """Store a new grant."""
    tx.connection.execute(insert(grants).values(**with_mac(tx, grants, _row(grant))))


def _row(grant: Grant) -> dict[str, object]:
    row = {name: getattr(grant, name) for name in _NAMES}
    return {
        **row,
        "limits": vars(grant.limits),
        "votes": [vars(vote) for vote in grant.votes],
        "checks": list(grant.checks),
    }


def _read(row: Row) -> Grant:
    values = {name: getattr(row, name) for name in _NAMES}
    values |= {
        "limits": GrantLimits(**values["limits"]),
        "status": GrantStatus(values["status"]),
        "votes": tuple(Vote(**{**vote, "decision": DecisionKind(vote["decision"])}) for vote in values["votes"]),
        "checks": tuple(values["checks"]),
    }
    return Grant(**values)


_PUT = Prepared(update(grants).where(grants.c.id == bindparam("of_grant")))


def put(tx: Tx, grant: Grant) -> Grant:
    """Write a grant that this transaction locked; return it."""
    _PUT.change(tx, {"of_grant": grant.id, **with_mac(tx, grants, _row(grant))})
    return grant


def get(tx: Tx, grant_id: str, *, lock: bool = False) -> Grant | None:
    """Read a grant, and lock it where the transaction changes it.

    Raises:
        Untrusted, Invalid: something else changed it; see ``RecordMacs.check``.
    """
    query = select(grants).where(grants.c.id == grant_id)
    row = tx.connection.execute(query.with_for_update() if lock else query).first()
    return _read(check(tx, grants, row)) if row is not None and tx.sees(row.environment) else None


def list_grants(
    tx: Tx,
    *,
    environment: str | None = None,
    bundle: str | None = None,
    tool: str | None = None,
    status: str | None = None,
    unexpired: bool = False,
    limit: int = 100,
    after: str | None = None,
) -> tuple[Grant, ...]:
    """List grants, the newest first; those before ``after`` where it is given. Rows that are not authentic are left out."""
    wanted = {"environment": environment, "bundle": bundle, "tool": tool, "status": status}
    where: list[ColumnElement[bool]] = [grants.c[name] == value for name, value in wanted.items() if value is not None]
    if tx.reach is not None:
        where.append(grants.c.environment.in_(sorted(tx.reach)))
    if after is not None:
        where.append(grants.c.id < after)
    if unexpired:
        where.append(grants.c.expires_at > tx.at)
    rows = tx.connection.execute(select(grants).where(*where).order_by(grants.c.id.desc()).limit(limit))
    return tuple(_read(row) for row in rows if is_authentic(tx, grants, row))


_OPEN = grants.c.ended_at.is_(None)
_OF_TOOL = [
    grants.c.environment == bindparam("of_environment"),
    grants.c.digest == bindparam("of_digest"),
    grants.c.tool == bindparam("of_tool"),
]
_LAST_USE = select(func.max(grant_uses.c.number)).where(grant_uses.c.grant_id == grants.c.id).scalar_subquery()
_OPEN_OF_TOOL = Prepared(
    select(*grants.c, _LAST_USE.label("last")).where(*_OF_TOOL, _OPEN).order_by(grants.c.id).with_for_update(of=grants)
)
_OVER = [grants.c.bundle == bindparam("of_bundle"), or_(grants.c.ended == "used_up", grants.c.ended == "expired")]
_LAST_OVER = Prepared(select(grants).where(*_OF_TOOL, *_OVER).order_by(grants.c.id.desc()).limit(1))


def lock_open(tx: Tx, environment: str, digest: str, tool: str) -> tuple[Grant, ...]:
    """Lock the grants for a tool of a bundle that have not ended, in the order of their ids.

    A grant that is not authentic, or an earlier state of which was put back after further uses, covers nothing.
    """
    rows = _OPEN_OF_TOOL.rows(tx, {"of_environment": environment, "of_digest": digest, "of_tool": tool})
    # The number of the last use is as of the start of the statement: it may be older than a row that was waited for, never newer.
    return tuple(_read(row) for row in rows if is_authentic(tx, grants, row) and (row.last or 0) <= row.uses)


def last_over(tx: Tx, environment: str, release: ReleaseRef, tool: str) -> Grant | None:
    """Return the newest grant for a tool of a bundle whose uses or whose time are over."""
    place = {"of_environment": environment, "of_bundle": release.bundle, "of_digest": release.digest, "of_tool": tool}
    row = _LAST_OVER.first(tx, place)
    return _read(row) if row is not None and is_authentic(tx, grants, row) else None


_IN_RUN = Prepared(
    select(func.count().label("uses")).where(
        grant_uses.c.grant_id == bindparam("of_grant"), grant_uses.c.run_id == bindparam("of_run")
    )
)
_SINCE = Prepared(
    select(func.count().label("uses")).where(
        grant_uses.c.grant_id == bindparam("of_grant"), grant_uses.c.at >= bindparam("since")
    )
)


def uses_in_run(tx: Tx, grant: Grant, run_id: str) -> int:
    """Count the uses of a grant in one run."""
    row = _IN_RUN.first(tx, {"of_grant": grant.id, "of_run": run_id})
    return int(row.uses) if row is not None else 0


def uses_since(tx: Tx, grant: Grant, at: str) -> int:
    """Count the uses of a grant since a time."""
    row = _SINCE.first(tx, {"of_grant": grant.id, "since": at})
    return int(row.uses) if row is not None else 0


_ADD = Prepared(insert(grant_uses))


def count_use(tx: Tx, grant: Grant, use: GrantUse, totals: Mapping[str, str]) -> Grant:
    """Add a use of a grant that this transaction locked; the last one ends it. Return the grant."""
    _ADD.insert(tx, vars(use))
    used = put(tx, replace(grant, uses=use.number, totals=dict(totals)))
    return end(tx, [used], "used_up", actor=None)[0] if used.uses_left == 0 else used


def list_uses(tx: Tx, grant_id: str) -> tuple[GrantUse, ...]:
    """List the uses of a grant, the first one first; its limit bounds their number."""
    rows = tx.connection.execute(
        select(grant_uses).where(grant_uses.c.grant_id == grant_id).order_by(grant_uses.c.number)
    )
    return tuple(GrantUse(**row._asdict()) for row in rows)


def end(
    tx: Tx,
    found: Iterable[Grant],
    reason: GrantEnd,
    *,
    actor: str | None,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> list[Grant]:
    """End grants that this transaction locked, with an audit event for each; return them."""
    ended = []
    for grant in found:
        after = replace(grant, status=GrantStatus.ENDED, ended=reason, ended_at=tx.at, ended_by=actor)
        ended.append(put(tx, after))
        event = {**about(after), "reason": reason, "uses": after.uses, **facts}
        audit.record(tx, "grant.ended", actor=actor, environment=grant.environment, metadata=event)
    return ended


def about(grant: Grant) -> dict[str, object]:
    """Return the facts of a grant for the audit log, without its terms."""
    return {
        "grant": grant.id,
        "bundle": grant.bundle,
        "digest": grant.digest,
        "tool": grant.tool,
        "terms_digest": grant.terms_digest,
    }


def end_rejected(tx: Tx, environment: str, digest: str, tool: str, *, actor: str) -> None:
    """End the grants for a tool of a bundle, of which a person rejected a call."""
    where = [grants.c.environment == environment, grants.c.digest == digest, grants.c.tool == tool]
    end(tx, _lock_where(tx, where), "rejected", actor=actor)


def end_replaced(tx: Tx, environment: str, released: Mapping[str, str | None], *, actor: str) -> None:
    """End the grants of bundles that are not for the digests that are released now.

    Args:
        tx: The transaction.
        environment: The environment.
        released: The digest of each changed bundle; None for one without a release.
        actor: Who changed the releases.
    """
    found = _lock_where(tx, [grants.c.environment == environment])
    replaced = [grant for grant in found if released.get(grant.bundle, grant.digest) != grant.digest]
    end(tx, replaced, "replaced", actor=actor)


def end_expired(tx: Tx) -> None:
    """End the grants whose time is over."""
    end(tx, _lock_where(tx, [grants.c.expires_at <= tx.at]), "expired", actor=None)


def has_expired(tx: Tx) -> bool:
    """Return whether there is a grant whose time is over and that has not ended."""
    query = select(grants.c.id).where(_OPEN, grants.c.expires_at <= tx.at).limit(1)
    return tx.connection.execute(query).first() is not None


def _lock_where(tx: Tx, where: Sequence[ColumnElement[bool]]) -> list[Grant]:
    """Lock grants that have not ended. One that is not authentic covers nothing, and does not become authentic by its end."""
    rows = tx.connection.execute(select(grants).where(_OPEN, *where).order_by(grants.c.id).with_for_update()).all()
    return [_read(row) for row in rows if is_authentic(tx, grants, row)]


def uses_allowed(tx: Tx, task_ids: Collection[str]) -> Mapping[str, int]:
    """Return the uses that the grant allows which decided a task, by the task; other tasks are left out."""
    query = select(grant_uses.c.task_id, *grants.c).join(grants, grants.c.id == grant_uses.c.grant_id)
    rows = tx.connection.execute(query.where(grant_uses.c.task_id.in_(task_ids))) if task_ids else ()
    return {row.task_id: _read(row).limits.uses for row in rows if is_authentic(tx, grants, row)}


def total_uses(tx: Tx) -> int:
    """Count the calls that grants covered."""
    return tx.connection.execute(select(func.count()).select_from(grant_uses)).scalar_one()


def last_uses(tx: Tx, found: Iterable[Grant]) -> Mapping[str, str]:
    """Return the time of the last use of each grant that was used."""
    ids = [grant.id for grant in found]
    query = select(grant_uses.c.grant_id, func.max(grant_uses.c.at)).where(grant_uses.c.grant_id.in_(ids))
    return {row[0]: row[1] for row in tx.connection.execute(query.group_by(grant_uses.c.grant_id))}


def count_active(tx: Tx, environment: str | None = None) -> int:
    """Count the active grants, of one environment or of all."""
    where = [grants.c.status == GrantStatus.ACTIVE.value, grants.c.expires_at > tx.at]
    where += [grants.c.environment == environment] if environment is not None else []
    return tx.connection.execute(select(func.count()).select_from(grants).where(*where)).scalar_one()
