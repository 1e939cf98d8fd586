"""The Merkle tree's inner nodes: written when events are sealed, read for proofs and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, literal, select, tuple_, union_all

from kneo.errors import NotFound
from kneo.records.audit import edge_of, inclusion_proof, parent_of, root_of
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.prepared import Prepared
from kneo.store.tables import audit_chain, audit_checkpoints, audit_nodes

BACKFILL_BATCH = 10_000

_LAST = Prepared(
    select(audit_nodes.c.position).where(audit_nodes.c.level == 1).order_by(audit_nodes.c.position.desc()).limit(1)
)
_ADD = Prepared(insert(audit_nodes))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The proof that an event is in the log, which is verified without this service."""

    seq: int
    leaf: str
    size: int
    root: str
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A signed statement of how long the log was and what was in it."""

    size: int
    root: str
    note: str
    created_at: str


def extend(tx: Tx, first: int, leaves: Sequence[str]) -> None:
    """Add leaves from the sequence number ``first`` to the tree, after those that it lacks."""
    # The last node rather than their number: it takes no longer however long the log is.
    last = _LAST.first(tx, {})
    covered = 2 * (last.position + 1) if last is not None else 0
    start = first - 1
    if covered > start + 1:
        # The log was cut off. Its old nodes stay as evidence against new events in their place.
        return
    while covered + 1 < start:
        batch = _leaves(tx, covered, min(start, covered + BACKFILL_BATCH))
        _grow(tx, covered, batch)
        covered += len(batch) // 2 * 2
    if covered < start:
        leaves, start = [*_leaves(tx, covered, start), *leaves], covered
    _grow(tx, start, leaves)


def _grow(tx: Tx, start: int, leaves: Sequence[str]) -> None:
    """Hash complete pairs, level by level."""
    level, current, open_nodes = 0, list(leaves), _open_nodes(tx, start, start + len(leaves))
    while current:
        if start & 1:
            current.insert(0, open_nodes[level])
            start -= 1
        pairs = [parent_of(current[i], current[i + 1]) for i in range(0, len(current) - 1, 2)]
        level, start = level + 1, start >> 1
        rows = [{"level": level, "position": start + i, "hash": item} for i, item in enumerate(pairs)]
        if rows:
            _ADD.insert(tx, *rows)
        current = pairs


def _open_nodes(tx: Tx, size: int, grown: int) -> Mapping[int, str]:
    """Read the last node of each level that has no sibling in a log of this size, and gets one until it has grown."""
    levels = [level for level in range(size.bit_length()) if size >> level & 1 and grown >> level > size >> level]
    found = _read_nodes(tx, [(level, (size >> level) - 1) for level in levels])
    return {level: found[level, (size >> level) - 1] for level in levels}


def _read_nodes(tx: Tx, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], str]:
    """Read nodes by their levels and positions in one statement.

    Raises:
        NotFound: ``audit_tree_damaged``: one of them is missing.
    """
    if not keys:
        return {}
    leaf = select(literal(0).label("level"), audit_chain.c.seq - 1, audit_chain.c.leaf)
    leaves = [leaf.where(audit_chain.c.seq == position + 1) for level, position in keys if level == 0]
    inner = tuple_(audit_nodes.c.level, audit_nodes.c.position).in_([key for key in keys if key[0] > 0])
    nodes = select(audit_nodes.c.level, audit_nodes.c.position, audit_nodes.c.hash).where(inner)
    found = {(row[0], row[1]): str(row[2]) for row in tx.connection.execute(union_all(*leaves, nodes))}
    missing = next((key for key in keys if key not in found), None)
    if missing is not None:
        msg = f"The audit log's tree lacks a node (level {missing[0]}, position {missing[1]})."
        raise NotFound(msg, code="audit_tree_damaged", hint="kneo audit verify says where the log was changed.")
    return found


def _leaves(tx: Tx, start: int, end: int) -> list[str]:
    rows = tx.connection.execute(
        select(audit_chain.c.leaf)
        .where(audit_chain.c.seq > start, audit_chain.c.seq <= end)
        .order_by(audit_chain.c.seq)
    )
    return [row.leaf for row in rows]


def _node(tx: Tx, level: int, position: int) -> str:
    return _read_nodes(tx, [(level, position)])[level, position]


def size(tx: Tx) -> int:
    """Return the number of sealed events."""
    return tx.connection.execute(select(func.max(audit_chain.c.seq))).scalar() or 0


def root(tx: Tx, at: int) -> str:
    """Compute the root over the first events."""
    return root_of(at, lambda level, position: _node(tx, level, position))


def edge(tx: Tx, at: int) -> tuple[str, ...]:
    """Return the edge of the tree over the first events; see ``kneo.records.audit.edge_of``."""
    return edge_of(at, lambda level, position: _node(tx, level, position))


def prove(tx: Tx, seq: int, at: int | None = None) -> Proof:
    """Prove that an event is in the log of the present or an earlier size.

    Raises:
        NotFound: there is no such event in the log of that size.
    """
    total = size(tx) if at is None else min(at, size(tx))
    if not 1 <= seq <= total:
        msg = f"The audit log has the events 1 to {total}, and {seq} is not among them."
        raise NotFound(msg, code="audit_event_not_found")

    def node(level: int, position: int) -> str:
        return _node(tx, level, position)

    path = inclusion_proof(seq - 1, total, node)
    return Proof(seq=seq, leaf=node(0, seq - 1), size=total, root=root_of(total, node), path=path)


class NodeCheck:
    """Compares the stored nodes with those of the leaves, during a walk over the leaves.

    Args:
        tx: The snapshot.
    """

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._made: dict[int, dict[int, str]] = {}

    def add(self, completed: Sequence[tuple[int, int, str]]) -> None:
        """Add nodes that the next leaf completes."""
        for level, position, node in completed:
            self._made.setdefault(level, {})[position] = node

    def problem(self) -> str | None:
        """Compare the nodes added since the last call; return the first difference, as a clause."""
        added, self._made = self._made, {}
        for level, nodes in sorted(added.items()):
            rows = self._tx.connection.execute(
                select(audit_nodes.c.position, audit_nodes.c.hash).where(
                    audit_nodes.c.level == level, audit_nodes.c.position.between(min(nodes), max(nodes))
                )
            )
            stored = {row.position: row.hash for row in rows}
            for position, node in nodes.items():
                if stored.get(position) != node:
                    what = "is missing" if position not in stored else "is not what the events make it"
                    return f"the tree's node {position} of level {level} {what}, so proofs would not hold"
        return None

    def problem_beyond(self, size: int) -> str | None:
        """Find nodes of events that are no longer in the log."""
        counts = self._tx.connection.execute(
            select(audit_nodes.c.level, func.max(audit_nodes.c.position)).group_by(audit_nodes.c.level)
        )
        for level, last in counts:
            if last + 1 > size >> level or level < 1:
                return f"the tree has nodes of more than the {size} events of the log: its end was cut off"
        return None


def keep_checkpoint(tx: Tx, item: Checkpoint) -> None:
    """Store a checkpoint, unless there is one of its size."""
    insert_ignoring_duplicates(tx, audit_checkpoints, size=item.size, root=item.root, note=item.note, created_at=tx.at)


def checkpoints(tx: Tx) -> tuple[Checkpoint, ...]:
    """List all checkpoints, oldest first."""
    rows = tx.connection.execute(select(audit_checkpoints).order_by(audit_checkpoints.c.size))
    return tuple(Checkpoint(**row._asdict()) for row in rows)


def newest_checkpoint(tx: Tx, size: int | None = None) -> Checkpoint | None:
    """Read the newest checkpoint, or the one of a size of the log."""
    query = select(audit_checkpoints).order_by(audit_checkpoints.c.size.desc()).limit(1)
    row = tx.connection.execute(query if size is None else query.where(audit_checkpoints.c.size == size)).first()
    return Checkpoint(**row._asdict()) if row else None
