"""What people decide about releases: approvals, holds, suspensions. Recorded with their audit event, proof included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kneo.clock import isoformat
from kneo.digest import Digest, digest_of_json
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Untrusted
from kneo.records.release import ApprovalRecord, Hold, Pending, Suspension
from kneo.store import approvals, audit, idempotency, releases
from kneo.store.engine import Tx, lock_table
from kneo.trust.approvals import check_issued
from kneo.trust.dsse import TrustedKey, find_signers, parse_envelope, serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import KeyId, PrivateKey
from kneo.trust.statement import (
    APPROVAL_LIFE,
    ApprovalDecision,
    DecisionSubject,
    build_approval,
    parse_approval,
    prune_subject,
)

REGISTRY = "registry"
"""The origin of decisions that came through a service or a command, rather than with a commit."""

PRUNE_GATE = "prune"
"""The gate at which the removal of many releases waits."""

REASON_CHARS = 1_000


@dataclass(frozen=True, kw_only=True)
class UnsignedDecision:
    """Somebody's decision, before it is signed."""

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
        """Spell it as the bytes that are signed."""
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


def pending_subject(tx: Tx, environment: str, waits: Pending) -> DecisionSubject | None:
    """Say in full what a decision about something that waits is about, where that is no bundle.

    Raises:
        Conflict: what is served changed since; a pass will say anew what waits.
    """
    record = releases.environment(tx, environment)
    if waits.gate != PRUNE_GATE or waits.subject is None or record is None:
        return None
    going = {item.bundle for item in releases.pending(tx, environment) if item.subject == waits.subject}
    served = releases.list_releases(tx, environment, going)
    about = prune_subject(environment, record.revision, ((item.bundle, item.digest) for item in served))
    if about.digest != waits.subject:
        msg = f"What {environment} serves changed since this removal began to wait."
        raise Conflict(msg, code="registry_moved", hint=f"kneo reconcile, then kneo status {environment}.")
    return about


def prepare_decision(
    tx: Tx, environment: str, waits: Pending, decision: ApprovalDecision, expires: datetime, reason: str | None = None
) -> UnsignedDecision:
    """Write down a decision about something that waits.

    Raises:
        Invalid: nobody's approval would help it.
        Conflict: it is not what it was when it began to wait.
    """
    if waits.subject is None or waits.policy_digest is None:
        msg = f"{waits.bundle} does not wait for an approval in {environment}: {waits.reason}: {waits.message}"
        raise Invalid(msg, code="not_approvable", hint="kneo why says what would help.")
    about = pending_subject(tx, environment, waits)
    return UnsignedDecision(
        environment=environment,
        subject_name=about.name if about else waits.bundle,
        subject=Digest(waits.subject),
        policy_digest=Digest(waits.policy_digest),
        decision=decision,
        issued_at=tx.now,
        expires=min(expires, tx.now + APPROVAL_LIFE),
        reason=reason,
        about=about,
    )


def record_decision(tx: Tx, decided: UnsignedDecision, *, approver: str, service_key: PrivateKey) -> ApprovalRecord:
    """Record a decision of somebody the service authenticated; the service signs in their place and says so."""
    envelope = sign(PAYLOAD_TYPE, decided.payload(approver), service_key)
    record = _record(serialise(envelope), approver, service_key.keyid, signed=False)
    return _keep(tx, record)


def record_signed_decision(tx: Tx, envelope: bytes, keys: Mapping[KeyId, TrustedKey]) -> ApprovalRecord:
    """Record a decision that somebody signed with a key of their own. Whether it counts, the gates say each time.

    Raises:
        Untrusted: nobody we know signed it.
        Invalid: it is not a decision.
    """
    opened = parse_envelope(envelope, file="approval")
    signers = find_signers(opened, keys)
    if not signers:
        msg = "Nobody of the trust root signed this decision, or it was changed."
        raise Untrusted(msg, code="SignatureInvalid", hint="Sign it with a key that kneo trust show lists.")
    if len(signers) > 1:
        msg = "A decision is one person's; send one envelope for each."
        raise Invalid(msg, code="Malformed")
    said = parse_approval(opened.payload).predicate
    if said.issued_at is None:
        msg = "The decision does not say when it was signed (issuedAt)."
        raise Invalid(msg, code="Malformed", hint="Sign it with this version of kneo approve or kneo reject.")
    check_issued(said, tx.now)
    return _keep(tx, _record(envelope, signers[0].principal, signers[0].keyid, signed=True))


def _record(envelope: bytes, principal: str, keyid: str, *, signed: bool) -> ApprovalRecord:
    opened = parse_envelope(envelope)
    statement = parse_approval(opened.payload)
    predicate = statement.predicate
    return ApprovalRecord(
        id="appr_" + digest_of_json([opened.digest, principal]).removeprefix("sha256:")[:26],
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


def _keep(tx: Tx, record: ApprovalRecord) -> ApprovalRecord:
    idempotency.bind(tx, record.id)
    lock_environment(tx, record.environment)
    # A decision that a commit brought first is recorded as decided here too, once its maker sends it.
    if approvals.insert_approval(tx, record) or approvals.note_origin(tx, record.id, REGISTRY):
        verb = "approved" if record.decision == ApprovalDecision.APPROVE else "rejected"
        audit.record(
            tx,
            f"release.{verb}",
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
                "expires": record.expires_at,
                "reason": decision_reason(record),
            },
        )
    (kept,) = approvals.approvals_by_id(tx, (record.id,))
    return kept


def decision_reason(record: ApprovalRecord) -> str | None:
    """Read why somebody decided as they did, from what was signed; None where nothing says."""
    try:
        return parse_approval(parse_envelope(record.envelope).payload).predicate.reason
    except KneoError:
        return None


def lock_environment(tx: Tx, environment: str) -> None:
    """Come before or after a pass over this environment, never into the middle of it."""
    lock_table(tx, f"environment/{environment}")


def pending_item(tx: Tx, environment: str, bundle: str) -> Pending:
    """Find what waits of a bundle in an environment.

    Raises:
        NotFound: nothing does.
    """
    for item in releases.pending(tx, environment):
        if bundle in {item.bundle, f"{item.bundle}@{item.version}", item.digest, item.id}:
            return item
    msg = f"No pending change for {environment[:80]}/{bundle[:200]}."
    raise NotFound(msg, code="nothing_waits", hint=f"List pending changes: kneo status {environment[:80]}")


# ---- holds and suspensions --------------------------------------------------------------------------------------


def hold(tx: Tx, item: Hold) -> None:
    """Keep what is served of a bundle as it is.

    Raises:
        NotFound: the environment was never declared.
    """
    _check_reason(item.reason)
    _check_declared(tx, item.environment)
    idempotency.bind(tx, item.environment)
    lock_environment(tx, item.environment)
    approvals.put_hold(tx, item)
    audit.record(
        tx,
        "hold.set",
        actor=item.actor,
        environment=item.environment,
        metadata={"bundle": item.bundle, "digest": item.digest, "reason": item.reason, "until": item.until},
    )


def unhold(tx: Tx, environment: str, bundle: str, *, actor: str) -> None:
    """Let a bundle follow Git again.

    Raises:
        NotFound: it was not held.
    """
    idempotency.bind(tx, environment)
    lock_environment(tx, environment)
    if not approvals.delete_hold(tx, environment, bundle):
        msg = f"{bundle[:200]} is not held in {environment[:80]}."
        raise NotFound(msg, code="not_held")
    audit.record(tx, "hold.cleared", actor=actor, environment=environment, metadata={"bundle": bundle})


def suspend(tx: Tx, item: Suspension) -> None:
    """Change nothing in an environment for a while.

    Raises:
        NotFound: the environment was never declared.
    """
    _check_reason(item.reason)
    _check_declared(tx, item.environment)
    idempotency.bind(tx, item.environment)
    lock_environment(tx, item.environment)
    approvals.put_suspension(tx, item)
    metadata = {"reason": item.reason, "until": item.until}
    audit.record(tx, "environment.suspended", actor=item.actor, environment=item.environment, metadata=metadata)


def unsuspend(tx: Tx, environment: str, *, actor: str) -> None:
    """Let an environment change again.

    Raises:
        NotFound: it was not suspended, other than by its own file.
    """
    idempotency.bind(tx, environment)
    lock_environment(tx, environment)
    if not approvals.delete_suspension(tx, environment):
        msg = f"Nobody suspended {environment[:80]}."
        raise NotFound(msg, code="not_suspended", hint="If its file says suspend: true, change that with a commit.")
    audit.record(tx, "environment.unsuspended", actor=actor, environment=environment)


def _check_declared(tx: Tx, environment: str) -> None:
    if environment not in releases.environment_names(tx):
        msg = f"There is no environment {environment[:80]!r}."
        raise NotFound(msg, code="environment_not_found", hint="kneo status lists them.")


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > REASON_CHARS:
        msg = f"A reason is a text of 1 to {REASON_CHARS} characters."
        raise Invalid(msg, code="invalid_reason")
