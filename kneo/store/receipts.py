"""Rows of receipts: added in the transaction of the decision, never changed or removed."""

from __future__ import annotations

from sqlalchemy import bindparam, func, insert, select

from kneo.records.task import ReceiptRecord
from kneo.store.engine import Tx
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import receipts
from kneo.trust.record_mac import RecordTampered

_INSERT = Prepared(insert(receipts))


def insert_receipt(tx: Tx, record: ReceiptRecord) -> None:
    """Store a receipt, after those that ``last_before`` has read."""
    _INSERT.insert(tx, vars(record) | {"statements": list(record.statements)})


_OF_TASK = Prepared(select(receipts).where(receipts.c.task_id == bindparam("of_task")))


def of_task(tx: Tx, task_id: str) -> ReceiptRecord | None:
    row = _OF_TASK.first(tx, {"of_task": task_id})
    return _record(row) if row else None


def by_digest(tx: Tx, digest: str) -> ReceiptRecord | None:
    row = tx.connection.execute(select(receipts).where(receipts.c.digest == digest)).first()
    return _record(row) if row else None


def of_run(tx: Tx, run_id: str, limit: int | None = None) -> tuple[ReceiptRecord, ...]:
    """Read a run's receipts in the order in which they were written."""
    rows = tx.connection.execute(
        select(receipts).where(receipts.c.run_id == run_id).order_by(receipts.c.sequence).limit(limit)
    )
    return tuple(_record(row) for row in rows)


_OF_RUN = receipts.c.run_id == bindparam("of_run")
_BEFORE = Prepared(
    select(receipts).where(
        (receipts.c.task_id == bindparam("of_task"))
        | (_OF_RUN & (receipts.c.sequence == select(func.max(receipts.c.sequence)).where(_OF_RUN).scalar_subquery()))
    )
)


def last_before(tx: Tx, task_id: str, run_id: str) -> ReceiptRecord | None:
    """Read the newest receipt of a run, for the first one of a task; the writer holds the run's lock.

    Raises:
        RecordTampered: the task has a receipt, so that it was decided before, and an earlier state of it was put back.
    """
    rows = _BEFORE.rows(tx, {"of_task": task_id, "of_run": run_id})
    if any(row.task_id == task_id for row in rows):
        msg = f"The task {task_id} has a receipt, and an earlier state of the task was put back in the database."
        raise RecordTampered(msg, hint=f"Read the decision: kneo task receipt show {task_id}.")
    return _record(rows[0]) if rows else None


def _record(row: Row) -> ReceiptRecord:
    return ReceiptRecord(**{**row._asdict(), "statements": tuple(row.statements)})
