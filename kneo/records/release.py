"""Records of the registry: environments, bundles, promotions, releases and their conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class ConditionType(StrEnum):
    """The type of a condition. ``RECONCILING`` and ``STALLED`` exist while true; the others are true or false."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SOURCE_VERIFIED = "SourceVerified"
    POLICY_VALID = "PolicyValid"
    PROMOTED = "Promoted"
    VERIFIED = "Verified"
    HELD = "Held"
    DRIFT_DETECTED = "DriftDetected"


RECONCILE_FAILED = "ReconcileFailed"
"""The reason of a stalled environment whose reconciliation ended with an unexpected error; the controller tries again."""


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
    """An accepted bundle. ``payload`` is the signed bytes, ``digest`` their SHA-256."""

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
    """When the present envelope was first seen, where signatures were added later."""
    mac: bytes | None = field(default=None, repr=False, compare=False)
    """The message authentication code of the row; see ``kneo.store.releases.check_bundle``."""

    @property
    def signatures_seen_at(self) -> str:
        """When the present signatures were first seen."""
        return self.envelope_seen_at or self.first_seen_at


@dataclass(frozen=True, kw_only=True)
class Release:
    """A bundle that is released to an environment."""

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
    """Ids of the approvals of the promotion."""


RULES_CHANGED, APPROVAL_EXPIRED = "rules_changed", "expired"


@dataclass(frozen=True, kw_only=True)
class OutdatedApproval:
    """An approval of a pending change that does not count any more; its author may approve again."""

    principal: str
    policy_digest: str
    """The rules under which it was given."""

    at: str
    """When it was first seen."""

    reason: str
    """``rules_changed``, or ``expired``."""

    message: str


@dataclass(frozen=True, kw_only=True)
class PendingGate:
    """Another closed gate of a pending change."""

    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()


def also_closed(gates: Sequence[PendingGate]) -> str:
    """Return a sentence that names the other closed gates; empty where there are none."""
    return f" Also closed: {'; '.join(f'{item.gate}: {item.message}' for item in gates)}" if gates else ""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A declared change of an environment that a gate blocks."""

    bundle: str
    version: str
    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()
    kind: str = "promote"
    """``promote``, ``rollback``, ``retire``, or ``policy`` for a change of the protection rules."""

    digest: str | None = None
    """The bundle to release."""

    subject: str | None = None
    """The subject of an approval."""

    policy_digest: str | None = None
    """The policy digest of an approval."""

    id: str = ""
    since: str = ""
    """When the gate closed for this reason."""

    also: tuple[PendingGate, ...] = ()
    """The other closed gates, which ``message`` names too."""

    outdated_approvals: tuple[OutdatedApproval, ...] = ()
    """Approvals that do not count any more, which ``message`` names too."""


@dataclass(frozen=True, kw_only=True)
class PendingPlan:
    """The content of a pending change, as the controller compared it with what is in force."""

    id: str
    """The id of the pending change."""

    environment: str
    base: str | None
    """The digest of the release, or of the rules, that it would replace."""

    content: Mapping[str, object]
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """An environment as last accepted from Git. ``declaration`` is its file."""

    name: str
    declaration: bytes
    policy_digest: str
    revision: str
    pending: tuple[Pending, ...]
    updated_at: str
    previous: bytes | None = None
    """The file before ``policy_revision``."""

    policy_revision: str | None = None
    """The commit that introduced the present policy."""

    policy_approved: bool | None = None
    """Whether people approved the present policy; None for one of an earlier version. The previous policy has to allow the
    releases of ``policy_revision`` too, unless people approved the change."""

    trust_epoch: str | None = None
    """The digest of the trust and policy under which the releases were last verified."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A hold: the release of a bundle stays, regardless of Git, until a person lifts the hold."""

    environment: str
    bundle: str
    digest: str | None
    actor: str
    reason: str
    since: str
    until: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """A suspension: an environment does not change until a time, or until a person lifts the suspension."""

    environment: str
    actor: str
    reason: str
    since: str
    until: str | None = None


@dataclass(frozen=True, kw_only=True)
class ApprovalRecord:
    """An approval or rejection as first seen. ``envelope`` is its proof."""

    id: str
    environment: str
    subject: str
    subject_name: str
    policy_digest: str
    principal: str
    keyid: str
    decision: str
    signed: bool
    """Whether the person signed it with their own key, rather than the service for an authenticated person."""

    origin: str
    """``git`` or ``registry``."""

    payload_digest: str
    envelope: bytes
    expires_at: str
    first_seen_at: str
    overruled_by: str | None = None
    """For a rejection that an approved change of the rules ended: the policy digest of the new rules."""


@dataclass(frozen=True, kw_only=True)
class AttestationRecord:
    """A signed statement of facts about a bundle as first seen. ``envelope`` is its proof."""

    id: str
    subject: str
    """The digest of the bundle."""

    type: str
    """``eval``, ``rehearsal`` or ``canary``."""

    name: str
    """The name of the bundle."""

    suite_digest: str
    environment: str | None
    issued_at: str
    payload_digest: str
    envelope: bytes
    first_seen_at: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The commits of the config repository that were accepted and refused."""

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
    """Since when and why the repository cannot be fetched; None while it can."""
    rebuilding_since: str | None = None
    """When a rebuild of the registry from the commits began; None outside a rebuild."""
