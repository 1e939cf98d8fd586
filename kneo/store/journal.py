"""The journal of a run: results of calls inside a step, which are not repeated when the step starts again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import bindparam, func, select

from kneo.digest import Digest, digest_of
from kneo.store.engine import Tx, upsert
from kneo.store.prepared import Prepared
from kneo.store.tables import journal_entries


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """A finished call inside a step.

    Attributes:
        sequence: Its number in the journal of the run.
        location: The instance path of its step.
        name: Its name within the step.
        input_digest: The digest of its input.
        value: Its result, as JSON.
    """

    run_id: str
    sequence: int
    location: str
    name: str
    input_digest: str
    value: str
    created_at: str


_COLUMNS = [column for column in journal_entries.c if column.name != "key"]
_GET = Prepared(
    select(*_COLUMNS).where(journal_entries.c.run_id == bindparam("run_id"), journal_entries.c.key == bindparam("key"))
)
_ALL = Prepared(
    select(*_COLUMNS).where(journal_entries.c.run_id == bindparam("run_id")).order_by(journal_entries.c.sequence)
)


def find_entry(tx: Tx, run_id: str, location: str, name: str) -> JournalEntry | None:
    row = _GET.first(tx, {"run_id": run_id, "key": _key(location, name)})
    return JournalEntry(**row._asdict()) if row is not None else None


def list_entries(tx: Tx, run_id: str) -> Sequence[JournalEntry]:
    """Read the journal of a run, in order."""
    return tuple(JournalEntry(**row._asdict()) for row in _ALL.rows(tx, {"run_id": run_id}))


def record_entry(tx: Tx, run_id: str, location: str, name: str, *, input_digest: Digest, value: str) -> None:
    """Store the result of a call; its result for another input is replaced."""
    last = select(func.max(journal_entries.c.sequence)).where(journal_entries.c.run_id == run_id)
    number = (tx.connection.execute(last).scalar() or 0) + 1
    key: dict[str, object] = {"run_id": run_id, "key": _key(location, name)}
    values = {"location": location, "name": name, "input_digest": input_digest, "value": value}
    upsert(tx, journal_entries, key, sequence=number, created_at=tx.at, **values)


def copy_entries(tx: Tx, source: Sequence[JournalEntry], run_id: str) -> None:
    """Copy entries of another run's journal to a run."""
    for entry in source:
        row = asdict(entry) | {"run_id": run_id}
        upsert(tx, journal_entries, {"run_id": row.pop("run_id"), "key": _key(entry.location, entry.name)}, **row)


def _key(location: str, name: str) -> Digest:
    return digest_of(f"{location}\0{name}".encode())
