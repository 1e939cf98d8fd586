"""What parts of a step have done already: kept, so that they are not done again when their step is begun again."""

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
    """One finished part.

    Attributes:
        sequence: Its number among those of the run, in the order in which they were kept.
        location: Where its step stands.
        name: What it is called there.
        input_digest: Names what it was given.
        value: What it gave, as JSON.
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
    """Read what the parts of a run have done, in order."""
    return tuple(JournalEntry(**row._asdict()) for row in _ALL.rows(tx, {"run_id": run_id}))


def record_entry(tx: Tx, run_id: str, location: str, name: str, *, input_digest: Digest, value: str) -> None:
    """Keep what a part has done; what it did for another input is replaced."""
    last = select(func.max(journal_entries.c.sequence)).where(journal_entries.c.run_id == run_id)
    number = (tx.connection.execute(last).scalar() or 0) + 1
    key: dict[str, object] = {"run_id": run_id, "key": _key(location, name)}
    kept = {"location": location, "name": name, "input_digest": input_digest, "value": value}
    upsert(tx, journal_entries, key, sequence=number, created_at=tx.at, **kept)


def copy_entries(tx: Tx, source: Sequence[JournalEntry], run_id: str) -> None:
    """Give a run what the parts of another one have done."""
    for part in source:
        row = asdict(part) | {"run_id": run_id}
        upsert(tx, journal_entries, {"run_id": row.pop("run_id"), "key": _key(part.location, part.name)}, **row)


def _key(location: str, name: str) -> Digest:
    return digest_of(f"{location}\0{name}".encode())
