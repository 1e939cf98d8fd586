"""Approvals of releases, holds and suspensions: the decisions that gates evaluate and Git does not contain."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Row, delete, or_, select, update

from kneo.records.release import ApprovalRecord, Hold, Suspension
from kneo.store.engine import Tx, insert_ignoring_duplicates, upsert
from kneo.store.tables import approvals, holds, suspensions

AnyRow = Row[*tuple[object, ...]]


# ---- approvals --------------------------------------------------------------------------------------------------


def insert_approval(tx: Tx, item: ApprovalRecord) -> bool:
    """Store an approval or rejection; return whether it is new."""
    return insert_ignoring_duplicates(tx, approvals, **vars(item) | {"first_seen_at": tx.at})


def note_origin(tx: Tx, identity: str, origin: str) -> bool:
    """Record the origin of a decision that had another one; return whether it changed."""
    other = (approvals.c.id == identity) & (approvals.c.origin != origin)
    return tx.connection.execute(update(approvals).where(other).values(origin=origin)).rowcount > 0


def list_approvals(
    tx: Tx, environment: str | None = None, subject: str | None = None, *, unexpired_at: str | None = None
) -> tuple[ApprovalRecord, ...]:
    """List approvals and rejections in the order in which they were first seen.

    Args:
        tx: An open transaction.
        environment: Only those about this environment.
        subject: Only those about this subject.
        unexpired_at: Leave out approvals that expired by this time; a rejection does not expire.
    """
    where = []
    if environment is not None:
        where.append(approvals.c.environment == environment)
    if subject is not None:
        where.append(approvals.c.subject == subject)
    if unexpired_at is not None:
        where.append(or_(approvals.c.expires_at > unexpired_at, approvals.c.decision == "reject"))
    rows = tx.connection.execute(select(approvals).where(*where).order_by(approvals.c.first_seen_at, approvals.c.id))
    return tuple(_approval(row) for row in rows)


def newest_approvals(tx: Tx, environment: str, limit: int) -> tuple[ApprovalRecord, ...]:
    """List the newest approvals and rejections about an environment, newest first."""
    newest = approvals.c.first_seen_at.desc(), approvals.c.id.desc()
    rows = tx.connection.execute(
        select(approvals).where(approvals.c.environment == environment).order_by(*newest).limit(limit)
    )
    return tuple(_approval(row) for row in rows)


def approvals_by_id(tx: Tx, ids: tuple[str, ...]) -> tuple[ApprovalRecord, ...]:
    if not ids:
        return ()
    rows = tx.connection.execute(select(approvals).where(approvals.c.id.in_(ids)).order_by(approvals.c.first_seen_at))
    return tuple(_approval(row) for row in rows)


def _approval(row: AnyRow) -> ApprovalRecord:
    return ApprovalRecord(**row._asdict())


# ---- holds ------------------------------------------------------------------------------------------------------


def put_hold(tx: Tx, item: Hold) -> None:
    values = {name: value for name, value in vars(item).items() if name not in {"environment", "bundle"}}
    upsert(tx, holds, {"environment": item.environment, "bundle": item.bundle}, **values | {"since": tx.at})


def delete_hold(tx: Tx, environment: str, bundle: str) -> bool:
    """Lift a hold; return whether there was one."""
    done = tx.connection.execute(delete(holds).where(holds.c.environment == environment, holds.c.bundle == bundle))
    return done.rowcount > 0


def list_holds(tx: Tx, environment: str | None = None) -> tuple[Hold, ...]:
    """List the holds that are in force."""
    where: list[ColumnElement[bool]] = [(holds.c.until.is_(None)) | (holds.c.until > tx.at)]
    if environment is not None:
        where.append(holds.c.environment == environment)
    rows = tx.connection.execute(select(holds).where(*where).order_by(holds.c.environment, holds.c.bundle))
    return tuple(Hold(**row._asdict()) for row in rows)


# ---- suspensions ------------------------------------------------------------------------------------------------


def put_suspension(tx: Tx, item: Suspension) -> None:
    values = {name: value for name, value in vars(item).items() if name != "environment"}
    upsert(tx, suspensions, {"environment": item.environment}, **values | {"since": tx.at})


def delete_suspension(tx: Tx, environment: str) -> bool:
    """Lift a suspension; return whether there was one."""
    return tx.connection.execute(delete(suspensions).where(suspensions.c.environment == environment)).rowcount > 0


def suspension(tx: Tx, environment: str) -> Suspension | None:
    """Read the suspension of an environment that is in force."""
    row = tx.connection.execute(
        select(suspensions).where(
            suspensions.c.environment == environment,
            (suspensions.c.until.is_(None)) | (suspensions.c.until > tx.at),
        )
    ).first()
    return Suspension(**row._asdict()) if row else None
