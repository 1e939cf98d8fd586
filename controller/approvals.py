"""Which recorded or committed decisions count: verified one by one, under the trust in force. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kneo.clock import isoformat, parse_time
from kneo.digest import Digest, digest_of_json
from kneo.errors import KneoError, Untrusted
from kneo.names import person_key
from kneo.records.release import ApprovalRecord
from kneo.trust.approvals import CLOCK_SKEW, verify_approval, verify_recorded_approval
from kneo.trust.dsse import Signer, find_signers, parse_envelope
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot
from kneo.trust.statement import ApprovalDecision, DecisionSubject, parse_approval
from kneo.trust.verified import VerifiedApproval

GIT = "git"
REGISTRY = "registry"


@dataclass(frozen=True)
class ApprovalVote:
    """One person's decision about one thing under one set of rules."""

    principal: str
    name: str
    """What its maker calls the subject: a bundle's name, an environment file's path, or the name of ``about``."""

    approves: bool
    signed: bool
    id: str
    policy_digest: str
    first_seen: datetime
    roles: frozenset[str]
    """Roles of the trust root that the key has; none for somebody whom the service authenticated."""

    issued: datetime | None = None
    """When it was signed; for a rejection without a time when it was first seen, for an approval without one None."""

    reason: str = ""
    about: DecisionSubject | None = None
    """What was decided about, where that is no bundle and no set of rules."""

    @property
    def order(self) -> tuple[datetime, bool]:
        """Sort one person's decisions: the one signed later counts, and of two signed at one time the rejection."""
        return self.issued or datetime.min.replace(tzinfo=UTC), not self.approves


ApprovalVotes = Mapping[str, tuple[ApprovalVote, ...]]
"""Votes by the digest of what they are about."""


def signed_by_known(envelopes: Sequence[bytes], root: TrustRoot) -> tuple[bytes, ...]:
    """Leave out files that nobody of the trust root signed, before a transaction is held up by them."""
    return tuple(envelope for envelope in envelopes if _signers(envelope, root))


def _signers(envelope: bytes, root: TrustRoot) -> tuple[Signer, ...]:
    try:
        return tuple(find_signers(parse_envelope(envelope), root.keys))
    except KneoError:
        return ()


def committed_records(
    envelopes: Sequence[bytes], root: TrustRoot, known: Mapping[tuple[str, str], ApprovalRecord], now: datetime
) -> tuple[ApprovalRecord, ...]:
    """Read the approvals that a commit carries; what nobody we know signed is left out.

    Args:
        envelopes: The files.
        root: The trust root in force.
        known: What was recorded before, by payload digest and principal: it says when we first saw it.
        now: The one time of this pass.
    """
    found = []
    for envelope in envelopes:
        try:
            found += _committed(envelope, root, known, now)
        except KneoError:
            continue  # anybody can commit rubbish there; it counts for nothing
    return tuple(found)


def _committed(
    envelope: bytes, root: TrustRoot, known: Mapping[tuple[str, str], ApprovalRecord], now: datetime
) -> list[ApprovalRecord]:
    opened = parse_envelope(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        return []  # kept, it would stand in the way of the same words signed as what they are
    statement = parse_approval(opened.payload)
    predicate = statement.predicate
    records = []
    for signer in find_signers(opened, root.keys):
        before = known.get((opened.digest, signer.principal))
        if before is None and (predicate.issued_at is None or predicate.issued_at > now + CLOCK_SKEW):
            continue  # whoever keeps a decision back decides else when it counts
        records.append(
            before
            or ApprovalRecord(
                id="appr_" + digest_of_json([opened.digest, signer.principal]).removeprefix("sha256:")[:26],
                environment=predicate.environment,
                subject=predicate.bundle_digest,
                subject_name=statement.subject_name,
                policy_digest=predicate.policy_digest,
                principal=signer.principal,
                keyid=signer.keyid,
                decision=predicate.decision.value,
                signed=True,
                origin=GIT,
                payload_digest=opened.digest,
                envelope=envelope,
                expires_at=isoformat(predicate.expires),
                first_seen_at=isoformat(now),
            )
        )
    return records


def count_votes(
    records: Iterable[ApprovalRecord],
    environment: str,
    root: TrustRoot,
    service_key: PublicKey | None,
    now: datetime,
) -> ApprovalVotes:
    """Verify decisions about an environment; those that do not hold are left out.

    Args:
        records: In the order in which they were first seen. Of each person the approval and the rejection signed last
            are kept, those of the person's own key apart from those that the service recorded.
        environment: Its name.
        root: The trust root in force.
        service_key: The key our own service signs with; None believes no unsigned approval.
        now: The one time of this pass.
    """
    latest: dict[str, dict[tuple[str, str, bool, bool], ApprovalVote]] = {}
    for record in records:
        try:
            found = _verified(record, environment, root, service_key, now)
        except KneoError:
            continue
        for vote in _votes(record, found, root):
            votes = latest.setdefault(record.subject, {})
            key = person_key(vote.principal), vote.policy_digest, vote.signed, vote.approves
            if key not in votes or votes[key].order <= vote.order:
                votes[key] = vote
    return {subject: tuple(votes.values()) for subject, votes in latest.items()}


def _verified(
    record: ApprovalRecord, environment: str, root: TrustRoot, service_key: PublicKey | None, now: datetime
) -> VerifiedApproval | None:
    subject, policy = Digest(record.subject), Digest(record.policy_digest)
    if record.signed:
        return verify_approval(
            record.envelope,
            root=root,
            roles=tuple(root.document.roles),
            bundle_digest=subject,
            environment=environment,
            policy_digest=policy,
            now=now,
            first_seen=parse_time(record.first_seen_at),
        )
    if service_key is None:
        return None
    if root.expired_at(parse_time(record.first_seen_at)):
        msg = f"The trust root expired on {root.expires.isoformat()}, before this decision was seen."
        raise Untrusted(msg, code="Expired")
    return verify_recorded_approval(
        record.envelope,
        service_key=service_key,
        bundle_digest=subject,
        environment=environment,
        policy_digest=policy,
        now=now,
    )


def _votes(record: ApprovalRecord, found: VerifiedApproval | None, root: TrustRoot) -> list[ApprovalVote]:
    """One vote for the person the record is about; an envelope that several signed has a record for each."""
    if found is None:
        return []
    signers = [signer for signer in found.signers if signer.principal == record.principal]
    said, seen = found.statement.predicate, parse_time(record.first_seen_at)
    approves = said.decision is ApprovalDecision.APPROVE
    return [
        ApprovalVote(
            principal=signer.principal,
            name=found.statement.subject_name,
            approves=approves,
            signed=record.signed,
            id=record.id,
            policy_digest=record.policy_digest,
            first_seen=seen,
            roles=_roles(root, signer.keyid) if record.signed else frozenset(),
            issued=said.issued_at or (None if approves else seen),
            reason=said.reason or "",
            about=said.about,
        )
        for signer in signers[:1]
    ]


def _roles(root: TrustRoot, keyid: str) -> frozenset[str]:
    return frozenset(name for name in root.document.roles if any(keyid == known for known in root.role_keys(name)))


def role_members(root: TrustRoot, now: datetime) -> Mapping[str, frozenset[str]]:
    """Say who could sign for each role now."""
    return {
        name: frozenset(key.principal for keyid, key in root.role_keys(name).items() if not root.void(keyid, now))
        for name in root.document.roles
    }
