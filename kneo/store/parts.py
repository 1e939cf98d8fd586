"""What parts of a step have done already: kept, so that they are not done again when their step is begun again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import bindparam, func, select

from kneo.digest import Digest, digest_of
from kneo.store.engine import Tx, upsert
from kneo.store.prepared import Prepared
from kneo.store.tables import step_parts


@dataclass(frozen=True, kw_only=True)
class Part:
    """One finished part.

    Attributes:
        sequence: Its number among those of the run, in the order in which they were kept.
        place: Where its step stands.
        name: What it is called there.
        input_digest: Names what it was given.
        value: What it gave, as JSON.
    """

    run_id: str
    sequence: int
    place: str
    name: str
    input_digest: str
    value: str
    created_at: str


_COLUMNS = [column for column in step_parts.c if column.name != "key"]
_GET = Prepared(
    select(*_COLUMNS).where(step_parts.c.run_id == bindparam("run_id"), step_parts.c.key == bindparam("key"))
)
_ALL = Prepared(select(*_COLUMNS).where(step_parts.c.run_id == bindparam("run_id")).order_by(step_parts.c.sequence))


def find_part(tx: Tx, run_id: str, place: str, name: str) -> Part | None:
    row = _GET.first(tx, {"run_id": run_id, "key": _key(place, name)})
    return Part(**row._asdict()) if row is not None else None


def list_parts(tx: Tx, run_id: str) -> Sequence[Part]:
    """Read what the parts of a run have done, in order."""
    return tuple(Part(**row._asdict()) for row in _ALL.rows(tx, {"run_id": run_id}))


def keep_part(tx: Tx, run_id: str, place: str, name: str, *, input_digest: Digest, value: str) -> None:
    """Keep what a part has done; what it did for another input is replaced."""
    last = select(func.max(step_parts.c.sequence)).where(step_parts.c.run_id == run_id)
    number = (tx.connection.execute(last).scalar() or 0) + 1
    key: dict[str, object] = {"run_id": run_id, "key": _key(place, name)}
    kept = {"place": place, "name": name, "input_digest": input_digest, "value": value}
    upsert(tx, step_parts, key, sequence=number, created_at=tx.at, **kept)


def copy_parts(tx: Tx, source: Sequence[Part], run_id: str) -> None:
    """Give a run what the parts of another one have done."""
    for part in source:
        row = asdict(part) | {"run_id": run_id}
        upsert(tx, step_parts, {"run_id": row.pop("run_id"), "key": _key(part.place, part.name)}, **row)


def _key(place: str, name: str) -> Digest:
    return digest_of(f"{place}\0{name}".encode())
