"""A Merkle tree over the audit log, hashed as RFC 6962 says: small proofs that an event is in it.

A leaf's hash is the event's ``leaf`` (``state.audit``); an inner node's is ``SHA-256(0x01 || left || right)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EMPTY_ROOT = hashlib.sha256(b"").hexdigest()
"""The root of a tree without leaves (RFC 6962, 2.1)."""

Node = Callable[[int, int], str]
"""Finds the hash of a complete subtree by its level (0 is the leaves) and its position in that level."""


def parent_of(left: str, right: str) -> str:
    return hashlib.sha256(b"\x01" + bytes.fromhex(left) + bytes.fromhex(right)).hexdigest()


def root_of(size: int, node: Node) -> str:
    """Compute the root over the first ``size`` leaves."""
    return _range(0, size, node) if size else EMPTY_ROOT


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
    """Say whether a leaf is at this place of the tree with this root (RFC 9162, 2.1.3.2). Needs nothing else."""
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
    """The right edge of a growing tree: enough to know its root after every leaf."""

    size: int = 0
    _edge: list[str] = field(default_factory=list)

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
