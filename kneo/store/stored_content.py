"""The size of what runs store: inputs, outputs and conversations, as the database has them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Integer, LargeBinary, cast, func, select

from kneo.store.engine import Tx
from kneo.store.tables import agent_journal, runs


def measure(tx: Tx, environment: str, *, since: str | None = None, until: str | None = None) -> int:
    """Sum up the bytes of the runs of an environment.

    Args:
        tx: A transaction.
        environment: The environment.
        since: Only runs that changed then or later.
        until: Only runs that did not change then or later.
    """
    chosen = [runs.c.environment == environment]
    chosen += [runs.c.updated_at >= since] if since is not None else []
    chosen += [runs.c.updated_at < until] if until is not None else []
    texts = func.sum(_size(tx, runs.c.input_text) + func.coalesce(_size(tx, runs.c.output_text), 0))
    bodies = func.sum(_size(tx, agent_journal.c.body))
    conversations = select(bodies).join(runs, runs.c.id == agent_journal.c.run_id)
    found = [tx.connection.execute(one.where(*chosen)).scalar() for one in (select(texts), conversations)]
    return sum(int(size or 0) for size in found)


def _size(tx: Tx, column: ColumnElement[object]) -> ColumnElement[int]:
    if tx.dialect.name == "postgresql":
        return func.octet_length(column, type_=Integer)
    return func.length(cast(column, LargeBinary), type_=Integer)
