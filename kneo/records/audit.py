"""The audit log's events and the hash chain over them.

An event is written in the transaction of the change it describes. A sealer later gives it a place in the chain:
``head(n) = SHA-256(0x01 || head(n-1) || leaf(n))`` with ``leaf = SHA-256(0x00 || canonical event)``, so that writers
do not queue behind the chain's head and an edited, removed or inserted event is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kneo.digest import canonical_json
from kneo.errors import Invalid

EMPTY_HEAD = "0" * 64
"""The head of a chain without events."""


@dataclass(frozen=True, kw_only=True)
class AuditEvent:
    """An audit event: the actor, the action, its object and time. ``metadata`` has facts and digests, no content or secrets."""

    id: str
    at: str
    event_type: str
    actor: str | None
    run_id: str | None = None
    continuation_id: str | None = None
    environment: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    def canonical(self) -> bytes:
        return canonical_json(
            {
                "id": self.id,
                "at": self.at,
                "event_type": self.event_type,
                "actor": self.actor,
                "run_id": self.run_id,
                "continuation_id": self.continuation_id,
                "environment": self.environment,
                "metadata": dict(self.metadata),
            }
        )


def leaf_of(canonical: bytes) -> str:
    return hashlib.sha256(b"\x00" + canonical).hexdigest()


def head_of(previous: str, leaf: str) -> str:
    return hashlib.sha256(b"\x01" + bytes.fromhex(previous) + bytes.fromhex(leaf)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SealedEvent:
    """An event with its place in the chain; ``seq`` counts from 1, ``None`` while it waits to be sealed."""

    seq: int | None
    leaf: str | None
    event: AuditEvent


@dataclass(frozen=True, kw_only=True)
class ChainVerdict:
    """The result of verifying the whole chain.

    ``broken_at`` is the first bad sequence number. ``signatures`` says whether the signatures of the stored checkpoints
    were verified, which needs the key. ``unauthenticated`` counts events without a code of the service key that follow one
    with such a code; those before the latest adoption of records are not among them.
    """

    valid: bool
    size: int
    head: str
    pending: int
    broken_at: int | None = None
    problem: str | None = None
    signatures: bool = False
    unauthenticated: int = 0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Heads of the chain and roots of the tree that an auditor keeps elsewhere, by the size of the log."""

    heads: Mapping[int, str] = field(default_factory=dict)
    roots: Mapping[int, str] = field(default_factory=dict)


EMPTY_ROOT = hashlib.sha256(b"").hexdigest()
"""The root of a tree without leaves (RFC 6962, 2.1)."""

Node = Callable[[int, int], str]
"""Finds the hash of a complete subtree by its level (0 is the leaves) and its position in that level."""


def parent_of(left: str, right: str) -> str:
    return hashlib.sha256(b"\x01" + bytes.fromhex(left) + bytes.fromhex(right)).hexdigest()


def root_of(size: int, node: Node) -> str:
    """Compute the root over the first ``size`` leaves."""
    return _range(0, size, node) if size else EMPTY_ROOT


def edge_of(size: int, node: Node) -> tuple[str, ...]:
    """Return the roots of the complete subtrees that make up the first ``size`` leaves, the largest first."""
    levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
    return tuple(node(level, (size >> level) - 1) for level in levels)


def inclusion_proof(index: int, size: int, node: Node) -> tuple[str, ...]:
    """Collect the hashes that lead from a leaf to the root over ``size`` leaves (RFC 6962, 2.1.1)."""
    path: list[str] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range(middle, end, node))
            end = middle
        else:
            path.append(_range(start, middle, node))
            start = middle
    return tuple(reversed(path))


def _range(start: int, end: int, node: Node) -> str:
    size = end - start
    if size & (size - 1) == 0 and start % size == 0:
        level = size.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(size)
    return parent_of(_range(start, middle, node), _range(middle, end, node))


def _split(size: int) -> int:
    """The largest power of two below a size."""
    return 1 << (size - 1).bit_length() - 1


def verify_inclusion(leaf: str, index: int, size: int, proof: Sequence[str], root: str) -> bool:
    """Return whether a leaf is at this place of the tree with this root (RFC 9162, 2.1.3.2). Needs nothing else."""
    if not 0 <= index < size:
        return False
    place, last, current = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            current = parent_of(step, current)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            current = parent_of(current, step)
        place, last = place >> 1, last >> 1
    return last == 0 and current == root


@dataclass
class Frontier:
    """The right edge of a growing tree: enough to compute its root after every leaf."""

    size: int = 0
    _edge: list[str] = field(default_factory=list)

    @classmethod
    def after(cls, size: int, edge: Sequence[str]) -> Frontier:
        """Return the edge of a tree that has leaves already; see ``edge_of``.

        Raises:
            Invalid: ``Malformed``: a tree of this size has another number of subtrees.
        """
        if size.bit_count() != len(edge):
            msg = f"The edge of a tree of {size} events has {size.bit_count()} hashes, not {len(edge)}."
            raise Invalid(msg, code="Malformed")
        return cls(size, [*edge])

    def add(self, leaf: str) -> tuple[tuple[int, int, str], ...]:
        """Append a leaf; return the inner nodes that it completes, each with its level and position."""
        current, place, level = leaf, self.size, 0
        completed = []
        while place & 1:
            current, place, level = parent_of(self._edge.pop(), current), place >> 1, level + 1
            completed.append((level, place, current))
        self._edge.append(current)
        self.size += 1
        return tuple(completed)

    def root(self) -> str:
        """Compute the root over all leaves so far."""
        if not self._edge:
            return EMPTY_ROOT
        root = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            root = parent_of(left, root)
        return root
