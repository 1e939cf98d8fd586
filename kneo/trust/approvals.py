"""Signed decisions about bundles, verified as strictly as the bundles themselves."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid, Untrusted
from kneo.trust.dsse import CLOCK_TOLERANCE, Envelope, Signer, TrustedKey, find_signers, parse_envelope
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, ApprovalPredicate, ApprovalStatement, parse_approval
from kneo.trust.verify import SEAL, VerifiedApproval


def approval_id(payload: Digest, principal: str) -> str:
    """Return the id of one person's decision: derived, so that the same decision is recorded once."""
    return "appr_" + digest_of_json([payload, principal]).removeprefix("sha256:")[:26]


def verify_approval(  # noqa: PLR0913 - what a decision is bound to is all of this, and all by name
    envelope: bytes,
    *,
    root: TrustRoot,
    roles: Collection[str],
    bundle_digest: Digest,
    environment: str,
    policy_digest: Digest,
    now: datetime,
    first_seen: datetime | None = None,
    file: str = "approval",
) -> VerifiedApproval:
    """Verify a signed decision about exactly this bundle, environment and policy.

    1. The file is an envelope of an in-toto statement, within its bounds.
    2. A person of these roles signed it with a key that is not revoked.
    3. The signed bytes are an approval statement and nothing else.
    4. It is about this bundle, this environment and this policy.
    5. It is an approval that has not expired, or a rejection, which counts until it is withdrawn.
    6. The time of first sight is before the trust root's expiry, and not before the time of signing.

    The gate decides how many approvals are needed, and whether signer and approver may be the same person.

    Args:
        envelope: The file.
        root: The verified trust root.
        roles: Roles of the trust root whose people may decide; empty refuses.
        bundle_digest: Digest of the pending bundle.
        environment: Name of the environment.
        policy_digest: Digest of the environment's rules.
        now: The time of verification.
        first_seen: Recorded time of first sight of this very envelope; a revocation does not affect earlier sights.
        file: The approval's name in messages.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``SignatureInvalid``, ``KeyRevoked``, ``SubjectMismatch``, ``Expired``.
    """
    # (1)
    opened = _open(envelope, file)
    # (2)
    keys = {keyid: key for name in roles for keyid, key in root.role_keys(name).items()}
    found = find_signers(opened, keys)
    if not found:
        msg = f"{file}: not signed by a person of the role {', '.join(sorted(roles)) or '(none)'}."
        raise Untrusted(msg, code="SignatureInvalid", hint="Approve with kneo approve --key and an approver's key.")
    seen_at = first_seen or now
    signers = tuple(signer for signer in found if not root.void(signer.keyid, seen_at))
    if not signers:
        msg = f"{file}: the key of {', '.join(s.principal for s in found)} was revoked."
        raise Untrusted(msg, code="KeyRevoked", hint="Approve again with a key that is not revoked.")
    # (3)
    statement = parse_approval(opened.payload, file=file)
    if statement.predicate.approver is not None:
        msg = f"{file}: signed by a person's key and yet in the name of {statement.predicate.approver}."
        raise Untrusted(msg, code="SignatureInvalid", hint="Sign the decision in your own name.")
    # (4)
    _check_binding(statement, bundle_digest, environment, policy_digest, file)
    # (5)
    _check_unexpired(statement.predicate, now, file)
    # (6)
    if root.expired_at(seen_at):
        msg = f"{file}: the trust root expired on {root.expires.isoformat()}, before this decision was seen."
        raise Untrusted(
            msg, code="Expired", hint="Renew the trust root with kneo trust sign --expires, then decide again."
        )
    check_issued(statement.predicate, seen_at, file=file)
    return VerifiedApproval(statement=statement, envelope=envelope, signers=signers, seal=SEAL)


def verify_recorded_approval(
    envelope: bytes,
    *,
    service_key: PublicKey,
    bundle_digest: Digest,
    environment: str,
    policy_digest: Digest,
    now: datetime,
) -> VerifiedApproval:
    """Verify a decision that this service recorded for an authenticated person.

    The steps are those of ``verify_approval``, with the service's key in place of a person's. The signer of the result
    is the person that the service names. An environment with ``signed`` approvals must not accept these.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``SignatureInvalid``, ``SubjectMismatch``, ``Expired``.
    """
    opened = _open(envelope, "approval")
    if not find_signers(opened, {service_key.keyid: TrustedKey(service_key, "service")}):
        msg = "approval: not signed by this service."
        raise Untrusted(msg, code="SignatureInvalid", hint="Decide again; the service's key may have been replaced.")
    statement = parse_approval(opened.payload)
    approver = statement.predicate.approver
    if approver is None:
        msg = "approval: signed by this service, but it names no approver."
        raise Untrusted(msg, code="SignatureInvalid")
    _check_binding(statement, bundle_digest, environment, policy_digest, "approval")
    _check_unexpired(statement.predicate, now, "approval")
    signer = Signer(approver, service_key.keyid)
    return VerifiedApproval(statement=statement, envelope=envelope, signers=(signer,), seal=SEAL)


def check_issued(predicate: ApprovalPredicate, seen: datetime, *, file: str = "approval") -> None:
    """Refuse a decision dated after its first sight: it would override later decisions of its signer.

    Raises:
        Untrusted: ``NotYetValid``.
    """
    issued = predicate.issued_at
    if issued is not None and issued > seen + CLOCK_TOLERANCE:
        msg = f"{file}: signed at {issued.isoformat()}, which is in the future."
        raise Untrusted(msg, code="NotYetValid", hint="Set the clock of the machine that signs, and decide again.")


def _check_unexpired(predicate: ApprovalPredicate, now: datetime, file: str) -> None:
    if predicate.decision is ApprovalDecision.APPROVE and now >= predicate.expires:
        msg = f"{file}: expired at {predicate.expires.isoformat()}."
        raise Untrusted(msg, code="Expired", hint="Approve again.")


def _open(envelope: bytes, file: str) -> Envelope:
    opened = parse_envelope(envelope, file=file)
    if opened.payload_type != PAYLOAD_TYPE:
        msg = f"{file}: payloadType is {opened.payload_type}, expected {PAYLOAD_TYPE}."
        raise Invalid(msg, code="Malformed")
    return opened


def _check_binding(statement: ApprovalStatement, bundle: Digest, environment: str, policy: Digest, file: str) -> None:
    predicate = statement.predicate
    if statement.subject_digest != predicate.bundle_digest:
        msg = f"{file}: its subject and its bundleDigest differ."
        raise Invalid(msg, code="Malformed")
    for what, actual, required in (
        ("bundle", predicate.bundle_digest, bundle),
        ("environment", predicate.environment, environment),
        ("policy", predicate.policy_digest, policy),
    ):
        if actual != required:
            msg = f"{file}: a decision about the {what} {actual}, not about {required}."
            raise Untrusted(msg, code="SubjectMismatch", hint="Approve the pending change itself; see kneo status.")
