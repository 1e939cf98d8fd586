"""Rows of receipts: added in the transaction of the decision, never changed or removed."""

from __future__ import annotations

from sqlalchemy import bindparam, insert, select

from kneo.records.task import ReceiptRecord
from kneo.store.engine import Tx
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import receipts
from kneo.trust.record_mac import RecordTampered

_INSERT = Prepared(insert(receipts))


def insert_receipt(tx: Tx, record: ReceiptRecord) -> None:
    """Store the receipt of a task, which has one at most.

    Raises:
        RecordTampered: the task has a receipt, so that it was decided before, and an earlier state of it was put back.
    """
    if of_task(tx, record.task_id) is not None:
        msg = f"The task {record.task_id} has a receipt, and an earlier state of the task was put back in the database."
        raise RecordTampered(msg, hint=f"Read the decision: kneo task receipt show {record.task_id}.")
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


_LAST = Prepared(
    select(receipts).where(receipts.c.run_id == bindparam("of_run")).order_by(receipts.c.sequence.desc()).limit(1)
)


def last_of_run(tx: Tx, run_id: str) -> ReceiptRecord | None:
    """Read a run's newest receipt; the writer of the next one holds the run's lock."""
    row = _LAST.first(tx, {"of_run": run_id})
    return _record(row) if row else None


def _record(row: Row) -> ReceiptRecord:
    return ReceiptRecord(**{**row._asdict(), "statements": tuple(row.statements)})
