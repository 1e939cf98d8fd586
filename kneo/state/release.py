"""What the registry records: environments, bundles, promotions, releases and the conditions that explain them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """``RECONCILING`` and ``STALLED`` are shown only while true; the others say true or false."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SOURCE_VERIFIED = "SourceVerified"
    POLICY_VALID = "PolicyValid"
    PROMOTED = "Promoted"
    VERIFIED = "Verified"
    HELD = "Held"
    DRIFT_DETECTED = "DriftDetected"


@dataclass(frozen=True, kw_only=True)
class Condition:
    type: ConditionType
    status: bool
    reason: str
    message: str
    revision: str
    since: str = ""
    """When ``status`` or ``reason`` last changed."""


class PromotionKind(StrEnum):
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    RETIRE = "retire"


@dataclass(frozen=True, kw_only=True)
class BundleRecord:
    """A bundle that was once accepted. ``payload`` is what was signed; ``digest`` is its SHA-256."""

    digest: str
    name: str
    version: str
    seq: int
    prev: str | None
    payload: bytes
    envelope: bytes
    spec_digest: str
    signers: tuple[str, ...]
    first_seen_at: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """A bundle serving an environment."""

    environment: str
    bundle: str
    version: str
    digest: str
    revision: str
    promotion_id: str
    since: str


@dataclass(frozen=True, kw_only=True)
class Promotion:
    id: str
    environment: str
    bundle: str
    kind: PromotionKind
    from_digest: str | None
    to_digest: str | None
    version: str | None
    actor: str
    revision: str
    audit_event_id: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A release that an environment asks for and does not serve yet, and why."""

    bundle: str
    version: str
    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """An environment as last accepted from Git. ``declaration`` is the file as it was read."""

    name: str
    declaration: bytes
    policy_digest: str
    revision: str
    pending: tuple[Pending, ...]
    updated_at: str
