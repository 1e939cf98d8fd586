"""What the registry records: environments, bundles, promotions, releases and the conditions that explain them."""

from __future__ import annotations

from collections.abc import Sequence
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
    envelope_digest: str | None = None
    envelope_seen_at: str | None = None
    """Since when the present envelope is known, where signatures were added later."""

    @property
    def signatures_seen_at(self) -> str:
        """When we first saw these very signatures."""
        return self.envelope_seen_at or self.first_seen_at


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
    reason: str | None = None
    approvals: tuple[str, ...] = ()
    """Ids of the approvals that let it happen."""


@dataclass(frozen=True, kw_only=True)
class PendingGate:
    """A further gate that is closed for a pending change."""

    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()


def also_closed(gates: Sequence[PendingGate]) -> str:
    """Name further closed gates, in words that follow the message of the first; empty where there are none."""
    return f" Also closed: {'; '.join(f'{item.gate}: {item.message}' for item in gates)}" if gates else ""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A change that an environment asks for and that did not happen yet, and why."""

    bundle: str
    version: str
    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()
    kind: str = "promote"
    """``promote``, ``rollback``, ``retire``, or ``policy`` for a change of the environment's own rules."""

    digest: str | None = None
    """The bundle that would be served."""

    subject: str | None = None
    """What an approval has to be about."""

    policy_digest: str | None = None
    """The rules an approval has to be given under."""

    id: str = ""
    since: str = ""
    """Since when this gate has waited for this reason."""

    also: tuple[PendingGate, ...] = ()
    """The further gates that are closed; ``message`` names them, too."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """An environment as last accepted from Git. ``declaration`` is the file as it was read."""

    name: str
    declaration: bytes
    policy_digest: str
    revision: str
    pending: tuple[Pending, ...]
    updated_at: str
    previous: bytes | None = None
    """The file in force before ``policy_revision``."""

    policy_revision: str | None = None
    """The commit since which the present rules are in force."""

    trust_epoch: str | None = None
    """What everything that is served here was last judged under."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """What is served of a bundle stays, whatever Git says, until somebody lifts this."""

    environment: str
    bundle: str
    digest: str | None
    actor: str
    reason: str
    since: str
    until: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """Nothing changes in an environment, until a time or until somebody lifts this."""

    environment: str
    actor: str
    reason: str
    since: str
    until: str | None = None


@dataclass(frozen=True, kw_only=True)
class ApprovalRecord:
    """Somebody's decision as it was first seen. ``envelope`` is the proof of it."""

    id: str
    environment: str
    subject: str
    subject_name: str
    policy_digest: str
    principal: str
    keyid: str
    decision: str
    signed: bool
    """Whether the person's own key made it, rather than the service for somebody it knew."""

    origin: str
    """``git`` or ``registry``."""

    payload_digest: str
    envelope: bytes
    expires_at: str
    first_seen_at: str


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """How far the repository was followed."""

    url: str
    ref: str
    accepted_commit: str | None
    accepted_at: str | None
    refused_commit: str | None
    refused_code: str | None
    refused_message: str | None
    failed_at: str | None = None
    failed_code: str | None = None
    failed_message: str | None = None
    """Since when, and why, its host could not be asked; None while it answers."""
    rebuilding_since: str | None = None
    """Since when the registry is rebuilt from the commits; None when it is not."""
