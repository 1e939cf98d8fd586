"""The audit log's events and the hash chain over them.

An event is written in the transaction of the change it describes. A sealer later gives it a place in the chain:
``head(n) = SHA-256(0x01 || head(n-1) || leaf(n))`` with ``leaf = SHA-256(0x00 || canonical event)``, so that writers
do not queue behind the chain's head and an edited, removed or inserted event is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kneo.digest import canonical_json

EMPTY_HEAD = "0" * 64
"""The head of a chain without events."""


@dataclass(frozen=True, kw_only=True)
class AuditEvent:
    """Who did what to what, when. ``metadata`` holds facts and digests, never content or secrets."""

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
    """What a walk over the whole chain found. ``broken_at`` is the first bad sequence number.

    ``signatures`` says whether the signatures of the stored checkpoints were checked, which needs the key.
    """

    valid: bool
    size: int
    head: str
    pending: int
    broken_at: int | None = None
    problem: str | None = None
    signatures: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What an auditor has written down elsewhere: heads of the chain and roots of the tree, each by the size of the log."""

    heads: Mapping[int, str] = field(default_factory=dict)
    roots: Mapping[int, str] = field(default_factory=dict)
