"""Adoption of records: codes for those of an earlier version, of a former service key, or of a restored backup, at the word of an operator.

No process adopts anything by itself: a person who can write to the database would only have to remove a code, or to set the schema back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import LargeBinary, Table, func, select, tuple_, update

from kneo.store import oidc_people, runs, tables, tasks
from kneo.store.authenticated import COVERED, MAC, body_of_row
from kneo.store.engine import Store, Tx
from kneo.store.prepared import Row
from kneo.trust.record_mac import RecordMacs

BATCH = 500
"""Rows of one transaction, which bounds the wait of other writers."""

NOT_ADOPTED = frozenset({tables.browser_sessions.name, tables.sign_in_links.name})
"""Tables of short-lived rows: people sign in again. Audit events are append-only, and never adopted either."""


@dataclass
class TableReport:
    """What the records of a table have: a valid code, none, one that does not fit, or one of another key.

    Attributes:
        found: The numbers by ``authentic``, ``without``, ``changed`` and ``other_key``.
        adopted: How many have got a code.
        refused: Records that are not adopted, because something else contradicts them.
    """

    found: Counter[str] = field(default_factory=Counter)
    adopted: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """Which records are adopted.

    Args:
        former: The codes of former service keys: a record that one of them authenticates is adopted.
        changed: Whether a record with any other code is adopted, too.
        contradicts: Returns what contradicts a row of the table with this name; ``None`` for nothing.
        dry_run: Whether records are only counted.
    """

    former: Sequence[RecordMacs] = ()
    changed: bool = False
    contradicts: Callable[[Tx, str, Row], str | None] = lambda _tx, _table, _row: None
    dry_run: bool = False


def adopt(store: Store, order: Adoption) -> Mapping[str, TableReport]:
    """Adopt the records of a database, in batches; safe while it is in use, and safe to repeat.

    Returns:
        The report of each table.
    """
    return {table.name: _adopt_table(store, table, order) for table in authenticated_tables()}


def authenticated_tables() -> Iterator[Table]:
    """Yield the tables whose rows are adopted."""
    for table in tables.metadata.sorted_tables:
        if MAC in table.columns and table.name not in {*NOT_ADOPTED, tables.audit_events.name}:
            yield table


def count_without(tx: Tx, macs: RecordMacs) -> Mapping[str, int]:
    """Return how many records of each table have no code of a key, by the id in the code; whether codes fit is not checked."""
    counts = {}
    for table in authenticated_tables():
        head = func.substr(table.c.mac, 1, len(macs.head or b""), type_=LargeBinary)
        query = select(func.count()).select_from(table).where(table.c.mac.is_(None) | (head != macs.head))
        if count := tx.connection.execute(query).scalar_one():
            counts[table.name] = count
    return counts


def _adopt_table(store: Store, table: Table, order: Adoption) -> TableReport:
    report = TableReport()
    key = list(table.primary_key.columns)
    last: Sequence[Any] | None = None
    while True:
        with store.write() as tx:
            query = select(table).order_by(*key).limit(BATCH).with_for_update()
            if last is not None:
                query = query.where(tuple_(*key) > tuple_(*last))
            rows = tx.connection.execute(query).all()
            for row in rows:
                _adopt_row(tx, table, row, order, report)
        if len(rows) < BATCH:
            return report
        last = [getattr(rows[-1], column.name) for column in key]


def _adopt_row(tx: Tx, table: Table, row: Any, order: Adoption, report: TableReport) -> None:  # noqa: ANN401 - of any table
    body = _body(tx, table, row)
    mac = getattr(row, MAC)
    state = _state(tx.macs, table.name, body, mac)
    report.found[state] += 1
    if state == "authentic" or not _is_wanted(order, table.name, body, mac, state):
        return
    why = order.contradicts(tx, table.name, row)
    if why is not None:
        report.refused.append(why)
        return
    report.adopted += 1
    if not order.dry_run:
        matches = [column == getattr(row, column.name) for column in table.primary_key.columns]
        tx.connection.execute(update(table).where(*matches).values(mac=tx.macs.make(table.name, body)))


def _is_wanted(order: Adoption, kind: str, body: bytes, mac: bytes | None, state: str) -> bool:
    if any(former.is_valid(kind, body, mac) for former in order.former):
        return True
    # Where a former key is given, a record without its code has lost it.
    return order.changed or (state == "without" and not order.former)


def _state(macs: RecordMacs, kind: str, body: bytes, mac: bytes | None) -> str:
    if mac is None:
        return "without"
    if macs.is_valid(kind, body, mac):
        return "authentic"
    return "changed" if macs.is_own(mac) else "other_key"


def _body(tx: Tx, table: Table, row: Any) -> bytes:  # noqa: ANN401 - of any table
    if table is tables.runs:
        return runs.body_of_row(row)
    if table is tables.tasks:
        return tasks.body_of_row(row)
    if table is tables.oidc_people:
        return oidc_people.body_of_row(tx, row)
    assert table.name in COVERED, f"the rows of {table.name} have codes"
    return body_of_row(table, row)
