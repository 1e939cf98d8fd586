"""Values kept for a whole project, each under a name."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from kneo.store.engine import Tx, lock_table, upsert
from kneo.store.tables import project_metadata


def read(tx: Tx, key: str) -> Mapping[str, object]:
    """Read a value; empty where it was never written."""
    value = tx.connection.execute(select(project_metadata.c.value).where(project_metadata.c.key == key)).scalar()
    return value if isinstance(value, dict) else {}


def write(tx: Tx, key: str, value: Mapping[str, object]) -> None:
    upsert(tx, project_metadata, {"key": key}, value=dict(value), updated_at=tx.at)


def lock(tx: Tx, key: str) -> None:
    """Lock a value until the transaction ends, before reading it to change a part of it."""
    lock_table(tx, f"project_metadata:{key}")
