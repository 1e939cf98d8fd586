"""Decisions of people about releases: approvals, rejections, holds, suspensions, each with its audit event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from kneo.clock import isoformat, parse_time
from kneo.digest import Digest
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Untrusted
from kneo.records.release import ApprovalRecord, Hold, Pending, Suspension
from kneo.registry.controls import (
    HOLD_CLEARED,
    HOLD_SET,
    REJECTED,
    SUSPENDED,
    UNSUSPENDED,
    holds_in_force,
    suspension_in_force,
)
from kneo.registry.resolve import declared
from kneo.registry.served import list_served
from kneo.store import audit, idempotency, releases
from kneo.store.engine import Tx, lock_table
from kneo.trust.approvals import approval_id, check_issued
from kneo.trust.dsse import TrustedKey, find_signers, parse_envelope, serialise, sign
from kneo.trust.keys import KeyId, PrivateKey
from kneo.trust.statement import (
    APPROVAL_LIFE,
    PAYLOAD_TYPE,
    ApprovalDecision,
    DecisionSubject,
    build_approval,
    canary_subject,
    parse_approval,
    prune_subject,
)

REGISTRY = "registry"
"""Origin of decisions that a service or a command recorded; others come with a commit."""

PRUNE_GATE = "prune"
"""The gate of mass removals."""

REASON_CHARS = 1_000


@dataclass(frozen=True, kw_only=True)
class UnsignedDecision:
    """A decision before it is signed."""

    environment: str
    subject_name: str
    subject: Digest
    policy_digest: Digest
    decision: ApprovalDecision
    issued_at: datetime
    expires: datetime
    reason: str | None = None
    about: DecisionSubject | None = None

    def payload(self, approver: str | None = None) -> bytes:
        """Return the bytes to sign."""
        return build_approval(
            bundle_name=self.subject_name,
            bundle_digest=self.subject,
            environment=self.environment,
            policy_digest=self.policy_digest,
            decision=self.decision,
            issued_at=self.issued_at,
            expires=self.expires,
            approver=approver,
            reason=self.reason,
            about=self.about,
        ).payload


def pending_subject(tx: Tx, environment: str, item: Pending) -> DecisionSubject | None:
    """Return the subject of a decision about a pending change that is no bundle; None for a bundle.

    Raises:
        Conflict: the releases changed since; the next reconciliation updates the pending change.
    """
    record = releases.environment(tx, environment)
    if item.subject is None or record is None:
        return None
    if item.gate != PRUNE_GATE:
        return _canary_subject(tx, environment, item)
    removed = {other.bundle for other in releases.pending(tx, environment) if other.subject == item.subject}
    served = list_served(tx, environment, removed)
    about = prune_subject(environment, record.revision, ((release.bundle, release.digest) for release in served))
    if about.digest != item.subject:
        msg = f"The releases of {environment} changed since this removal became pending."
        raise Conflict(msg, code="registry_moved", hint=f"Run kneo reconcile, then kneo status {environment}.")
    return about


def _canary_subject(tx: Tx, environment: str, item: Pending) -> DecisionSubject | None:
    if item.digest is None or item.subject == item.digest:
        return None
    plan = declared(tx, environment).canaries.get(item.bundle)
    about = canary_subject(environment, item.bundle, item.digest, plan.digest) if plan is not None else None
    if about is None or about.digest != item.subject:
        msg = f"The canary of {item.bundle} in {environment} changed since this change became pending."
        raise Conflict(msg, code="registry_moved", hint=f"Run kneo reconcile, then kneo status {environment}.")
    return about


def prepare_decision(
    tx: Tx,
    environment: str,
    item: Pending,
    decision: ApprovalDecision,
    expires: datetime,
    reason: str | None = None,
    *,
    full: bool = False,
) -> UnsignedDecision:
    """Prepare a decision about a pending change; ``full``: about the bundle itself, where it has a canary.

    Raises:
        Invalid: the change is not blocked by a missing approval.
        Conflict: the releases changed since it became pending.
    """
    if item.subject is None or item.policy_digest is None:
        msg = f"{item.bundle} is not waiting for an approval in {environment}: {item.reason}: {item.message}"
        raise Invalid(msg, code="not_approvable", hint=f"Show what blocks it: kneo why {environment}/{item.bundle}")
    about = pending_subject(tx, environment, item) if not full else None
    return UnsignedDecision(
        environment=environment,
        subject_name=about.name if about else item.bundle,
        subject=Digest(item.digest if full and item.digest is not None else item.subject),
        policy_digest=Digest(item.policy_digest),
        decision=decision,
        issued_at=tx.now,
        expires=min(expires, tx.now + APPROVAL_LIFE),
        reason=reason,
        about=about,
    )


def record_decision(
    tx: Tx, decided: UnsignedDecision, *, approver: str, service_key: PrivateKey, unread: bool = False
) -> ApprovalRecord:
    """Record the decision of an authenticated person, signed by the service in that person's name.

    Args:
        tx: The transaction.
        decided: The decision.
        approver: The person.
        service_key: The key of the service.
        unread: Whether the person confirmed without reading the change; the audit event says it.
    """
    envelope = sign(PAYLOAD_TYPE, decided.payload(approver), service_key)
    record = _record(serialise(envelope), approver, service_key.keyid, signed=False)
    return _keep(tx, record, unread=unread)


def record_signed_decision(
    tx: Tx, envelope: bytes, keys: Mapping[KeyId, TrustedKey], *, unread: bool = False
) -> ApprovalRecord:
    """Record a decision that a person signed. The gates evaluate at each reconciliation whether it counts.

    Raises:
        Untrusted: no key of the trust root signed it.
        Invalid: the envelope holds no decision.
    """
    opened = parse_envelope(envelope, file="approval")
    signers = find_signers(opened, keys)
    if not signers:
        msg = "No key of the trust root signed this decision, or it was changed."
        raise Untrusted(msg, code="SignatureInvalid", hint="Sign it with a key that kneo trust show lists.")
    if len(signers) > 1:
        msg = "A decision has one signer; send one envelope for each person."
        raise Invalid(msg, code="Malformed")
    predicate = parse_approval(opened.payload).predicate
    if predicate.issued_at is None:
        msg = "The decision does not say when it was signed (issuedAt)."
        raise Invalid(msg, code="Malformed", hint="Sign it with this version of kneo approve or kneo reject.")
    check_issued(predicate, tx.now)
    return _keep(tx, _record(envelope, signers[0].principal, signers[0].keyid, signed=True), unread=unread)


def _record(envelope: bytes, principal: str, keyid: str, *, signed: bool) -> ApprovalRecord:
    opened = parse_envelope(envelope)
    statement = parse_approval(opened.payload)
    predicate = statement.predicate
    return ApprovalRecord(
        id=approval_id(opened.digest, principal),
        environment=predicate.environment,
        subject=predicate.bundle_digest,
        subject_name=statement.subject_name,
        policy_digest=predicate.policy_digest,
        principal=principal,
        keyid=keyid,
        decision=predicate.decision.value,
        signed=signed,
        origin=REGISTRY,
        payload_digest=opened.digest,
        envelope=envelope,
        expires_at=isoformat(predicate.expires),
        first_seen_at="",
    )


def _keep(tx: Tx, record: ApprovalRecord, *, unread: bool) -> ApprovalRecord:
    idempotency.bind(tx, record.id)
    lock_environment(tx, record.environment)
    # A decision from a commit becomes one of the registry too when its maker sends it.
    if releases.insert_approval(tx, record) or releases.note_origin(tx, record.id, REGISTRY):
        audit.record(
            tx,
            "release.approved" if record.decision == ApprovalDecision.APPROVE else REJECTED,
            actor=record.principal,
            environment=record.environment,
            metadata={
                "approval": record.id,
                "bundle": record.subject_name,
                "subject": record.subject,
                "policy_digest": record.policy_digest,
                "decision": record.decision,
                "signed": record.signed,
                "keyid": record.keyid,
                **({"unread": True} if unread else {}),
                "expires": record.expires_at,
                "reason": decision_reason(record),
            },
        )
    (stored,) = releases.approvals_by_id(tx, (record.id,))
    return stored


def decision_reason(record: ApprovalRecord) -> str | None:
    """Return the reason in the signed decision; None without one."""
    return _reason_in(record.envelope)


@lru_cache(maxsize=512)
def _reason_in(envelope: bytes) -> str | None:
    # A decision never changes, and pages show the same ones again.
    try:
        return parse_approval(parse_envelope(envelope).payload).predicate.reason
    except KneoError:
        return None


def decisions_about(tx: Tx, environment: str, item: Pending) -> tuple[ApprovalRecord, ...]:
    """List the decisions about a pending change, whether they count or not, in the order in which they were first seen."""
    if item.subject is None:
        return ()
    found = releases.list_approvals(tx, environment, item.subject)
    if item.digest in {None, item.subject}:
        return found
    # A decision about the bundle of a canary is about the canary too.
    both = {record.id: record for record in (*found, *releases.list_approvals(tx, environment, item.digest))}
    return tuple(sorted(both.values(), key=lambda record: (record.first_seen_at, record.id)))


def lock_environment(tx: Tx, environment: str) -> None:
    """Lock an environment against a concurrent reconciliation."""
    lock_table(tx, f"environment/{environment}")


# ---- holds and suspensions --------------------------------------------------------------------------------------


def no_check() -> None:
    """Check nothing."""


def hold(tx: Tx, item: Hold, check_shorter: Callable[[], None] = no_check) -> None:
    """Hold the current release of a bundle; a hold of it is replaced.

    Args:
        tx: A write transaction.
        item: The hold.
        check_shorter: Called where the hold ends before the one that it replaces; raises where that is not permitted.

    Raises:
        NotFound: the environment was never declared.
    """
    check_reason(item.reason)
    check_declared(tx, item.environment)
    idempotency.bind(tx, item.environment)
    lock_environment(tx, item.environment)
    held = holds_in_force(tx, item.environment).get(item.bundle)
    if held is not None and _ends_before(item, held):
        check_shorter()
    releases.put_hold(tx, item)
    audit.record(
        tx,
        HOLD_SET,
        actor=item.actor,
        environment=item.environment,
        metadata={"bundle": item.bundle, "digest": item.digest, "reason": item.reason, "until": item.until},
    )


def unhold(tx: Tx, environment: str, bundle: str, *, actor: str) -> None:
    """Remove the hold of a bundle.

    Raises:
        NotFound: the bundle is not held.
    """
    idempotency.bind(tx, environment)
    lock_environment(tx, environment)
    is_held = bundle in holds_in_force(tx, environment)
    if not releases.delete_hold(tx, environment, bundle) and not is_held:
        msg = f"{bundle[:200]} is not held in {environment[:80]}."
        raise NotFound(msg, code="not_held")
    audit.record(tx, HOLD_CLEARED, actor=actor, environment=environment, metadata={"bundle": bundle})


def suspend(tx: Tx, item: Suspension, check_shorter: Callable[[], None] = no_check) -> None:
    """Suspend all changes of an environment; a suspension of it is replaced.

    Args:
        tx: A write transaction.
        item: The suspension.
        check_shorter: Called where it ends before the one that it replaces; raises where that is not permitted.

    Raises:
        NotFound: the environment was never declared.
    """
    check_reason(item.reason)
    check_declared(tx, item.environment)
    idempotency.bind(tx, item.environment)
    lock_environment(tx, item.environment)
    suspended = suspension_in_force(tx, item.environment)
    if suspended is not None and _ends_before(item, suspended):
        check_shorter()
    releases.put_suspension(tx, item)
    metadata = {"reason": item.reason, "until": item.until}
    audit.record(tx, SUSPENDED, actor=item.actor, environment=item.environment, metadata=metadata)


def unsuspend(tx: Tx, environment: str, *, actor: str) -> None:
    """Remove the suspension of an environment.

    Raises:
        NotFound: the environment is not suspended, other than by its file.
    """
    idempotency.bind(tx, environment)
    lock_environment(tx, environment)
    is_suspended = suspension_in_force(tx, environment) is not None
    if not releases.delete_suspension(tx, environment) and not is_suspended:
        msg = f"{environment[:80]} is not suspended."
        raise NotFound(msg, code="not_suspended", hint="If its file sets suspend: true, change that with a commit.")
    audit.record(tx, UNSUSPENDED, actor=actor, environment=environment)


def _ends_before(item: Hold | Suspension, other: Hold | Suspension) -> bool:
    if item.until is None:
        return False
    return other.until is None or parse_time(item.until) < parse_time(other.until)


def check_declared(tx: Tx, environment: str) -> None:
    """Check that an environment was ever declared.

    Raises:
        NotFound: it was not.
    """
    if environment not in releases.environment_names(tx):
        raise environment_not_found(environment)


def environment_not_found(name: str) -> NotFound:
    """Return the error of a name that no environment has."""
    msg = f"There is no environment {name[:80]!r}."
    return NotFound(msg, code="environment_not_found", hint="List environments: kneo status")


def check_reason(reason: str) -> None:
    """Check the length of a reason.

    Raises:
        Invalid: ``invalid_reason``.
    """
    if not reason.strip() or len(reason) > REASON_CHARS:
        msg = f"A reason must have 1 to {REASON_CHARS} characters."
        raise Invalid(msg, code="invalid_reason")
