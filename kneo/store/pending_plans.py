"""Rows of the plans of pending changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import delete as delete_rows
from sqlalchemy import select

from kneo.records.release import PendingPlan
from kneo.store.engine import Tx, upsert
from kneo.store.tables import pending_plans


def put(tx: Tx, plan: PendingPlan) -> None:
    values = {name: value for name, value in vars(plan).items() if name != "id"}
    upsert(tx, pending_plans, {"id": plan.id}, **values | {"content": dict(plan.content), "at": tx.at})


def get(tx: Tx, pending_id: str) -> PendingPlan | None:
    row = tx.connection.execute(select(pending_plans).where(pending_plans.c.id == pending_id)).first()
    return PendingPlan(**row._asdict()) if row is not None else None


def bases(tx: Tx, environment: str) -> Mapping[str, str | None]:
    """Return what each kept plan of an environment replaces, by the id of its pending change."""
    rows = tx.connection.execute(
        select(pending_plans.c.id, pending_plans.c.base).where(pending_plans.c.environment == environment)
    )
    return {row.id: row.base for row in rows}


def delete(tx: Tx, ids: Collection[str]) -> None:
    """Delete the plans of changes that are not pending any more."""
    if ids:
        tx.connection.execute(delete_rows(pending_plans).where(pending_plans.c.id.in_(sorted(ids))))
