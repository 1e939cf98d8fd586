"""Approvals and rejections as votes: each verified under the trust in force. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kneo.clock import isoformat, parse_time
from kneo.controller.stages.verify import TrustContext
from kneo.digest import Digest
from kneo.errors import KneoError, Untrusted
from kneo.names import person_key
from kneo.records.release import ApprovalRecord
from kneo.spec.models.environment import Approvals, Environment
from kneo.trust.approvals import approval_id, verify_approval, verify_recorded_approval
from kneo.trust.dsse import CLOCK_TOLERANCE, Signer, find_signers, parse_envelope
from kneo.trust.root import TrustRoot
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, DecisionSubject, parse_approval
from kneo.trust.verify import VerifiedApproval

GIT = "git"
REGISTRY = "registry"


@dataclass(frozen=True)
class ApprovalVote:
    """One person's decision about one subject under one set of rules."""

    principal: str
    name: str
    """The subject's name in the decision: a bundle's name, an environment file's path, or the name of ``about``."""

    approves: bool
    signed: bool
    id: str
    policy_digest: str
    first_seen: datetime
    roles: frozenset[str]
    """Trust root roles of the key; empty for a person whom the service authenticated."""

    expires: datetime | None = None
    """The end that its author set."""

    issued: datetime | None = None
    """Time of signing; a rejection without one has the time of first sight, an approval without one None."""

    reason: str = ""
    about: DecisionSubject | None = None
    """The subject, where it is neither a bundle nor a set of rules."""

    overruled: bool = False
    """Whether people approved rules under which its author may not decide, and so ended it."""

    @property
    def order(self) -> tuple[datetime, bool]:
        """Sort key of one person's decisions: the last signed counts, at equal times the rejection."""
        return self.issued or datetime.min.replace(tzinfo=UTC), not self.approves


def may_decide(vote: ApprovalVote, rule: Approvals, environment: Environment) -> bool:
    """Return whether a vote is that of an approver: by the people of the file, or by the roles of the key that signed it."""
    if rule.signed and not vote.signed:
        return False
    return bool((vote.roles | _roles_of(vote.principal, environment)) & set(rule.roles))


def _roles_of(name: str, environment: Environment) -> frozenset[str]:
    people = environment.spec.people.items()
    return frozenset(role for known, person in people if person_key(known) == person_key(name) for role in person.roles)


ApprovalVotes = Mapping[str, tuple[ApprovalVote, ...]]
"""Votes by the digest of their subject."""


def signed_by_known(envelopes: Sequence[bytes], root: TrustRoot) -> tuple[bytes, ...]:
    """Return the approval files with a signature of the trust root, so that a transaction parses no others."""
    return tuple(envelope for envelope in envelopes if _signers(envelope, root))


def _signers(envelope: bytes, root: TrustRoot) -> tuple[Signer, ...]:
    try:
        return tuple(find_signers(parse_envelope(envelope), root.keys))
    except KneoError:
        return ()


def decisions_in(envelopes: Iterable[bytes]) -> Iterator[tuple[Digest, str]]:
    """Yield digest and environment of the decisions in approval files, whether they count or not."""
    for envelope in envelopes:
        with contextlib.suppress(KneoError):
            opened = parse_envelope(envelope)
            yield opened.digest, parse_approval(opened.payload).predicate.environment


def committed_records(
    envelopes: Sequence[bytes], root: TrustRoot, known: Mapping[tuple[str, str], ApprovalRecord], now: datetime
) -> tuple[ApprovalRecord, ...]:
    """Read the approvals in a commit that carry a signature of the trust root.

    Args:
        envelopes: The approval files.
        root: The trust root in force.
        known: Recorded approvals with their time of first sight, by payload digest and principal.
        now: The time of this reconciliation.
    """
    records = []
    for envelope in envelopes:
        try:
            records += _committed(envelope, root, known, now)
        except KneoError:
            continue  # a file that is no approval has no effect
    return tuple(records)


def _committed(
    envelope: bytes, root: TrustRoot, known: Mapping[tuple[str, str], ApprovalRecord], now: datetime
) -> list[ApprovalRecord]:
    opened = parse_envelope(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        return []  # a record of it would block the same payload signed with the right type
    statement = parse_approval(opened.payload)
    predicate = statement.predicate
    records = []
    for signer in find_signers(opened, root.keys):
        before = known.get((opened.digest, signer.principal))
        if before is None and (predicate.issued_at is None or predicate.issued_at > now + CLOCK_TOLERANCE):
            continue  # a decision held back before its commit would choose when it counts
        records.append(
            before
            or ApprovalRecord(
                id=approval_id(opened.digest, signer.principal),
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
    trust: TrustContext,
) -> ApprovalVotes:
    """Verify the decisions about an environment; a decision that fails verification is no vote.

    Args:
        records: Decisions in the order of their first sight. The last approval and the last rejection of each person count,
            signed ones apart from those that the service recorded.
        environment: Name of the environment.
        trust: The trust of this reconciliation; without a service key no unsigned approval counts.
    """
    latest: dict[str, dict[tuple[str, str, bool, bool], ApprovalVote]] = {}
    for record in records:
        try:
            approval = verify_decision(
                record.envelope,
                signed=record.signed,
                subject=Digest(record.subject),
                environment=environment,
                policy_digest=Digest(record.policy_digest),
                first_seen=parse_time(record.first_seen_at),
                trust=trust,
            )
        except KneoError:
            continue
        # An envelope with several signatures has a record for each person.
        signer = next((signer for signer in approval.signers if signer.principal == record.principal), None)
        if signer is None:
            continue
        first_seen = parse_time(record.first_seen_at)
        vote = vote_of(approval, signer, trust.root, id=record.id, signed=record.signed, first_seen=first_seen)
        vote = replace(vote, overruled=record.overruled_by is not None)
        votes = latest.setdefault(record.subject, {})
        key = person_key(vote.principal), vote.policy_digest, vote.signed, vote.approves
        if key not in votes or votes[key].order <= vote.order:
            votes[key] = vote
    return {subject: tuple(votes.values()) for subject, votes in latest.items()}


def verify_decision(
    envelope: bytes,
    *,
    signed: bool,
    subject: Digest,
    environment: str,
    policy_digest: Digest,
    first_seen: datetime,
    trust: TrustContext,
) -> VerifiedApproval:
    """Verify a decision of a person.

    Args:
        envelope: The decision.
        signed: Whether the person signed it, rather than the service for an authenticated person.
        subject: Digest of the subject that it has to be about.
        environment: Name of the environment that it has to be about.
        policy_digest: Digest of the rules that it has to be under.
        first_seen: Time of its first sight.
        trust: The trust of this verification.

    Raises:
        Untrusted, Invalid: as ``verify_approval`` and ``verify_recorded_approval`` say.
    """
    root = trust.root
    if signed:
        return verify_approval(
            envelope,
            root=root,
            roles=tuple(root.document.roles),
            bundle_digest=subject,
            environment=environment,
            policy_digest=policy_digest,
            now=trust.now,
            first_seen=first_seen,
        )
    if trust.service_key is None:
        msg = "A service signed this decision for a person, and its key is not known here."
        raise Untrusted(msg, code="SignatureInvalid")
    if root.expired_at(first_seen):
        msg = f"The trust root expired on {root.expires.isoformat()}, before this decision was seen."
        raise Untrusted(msg, code="Expired")
    return verify_recorded_approval(
        envelope,
        service_key=trust.service_key,
        bundle_digest=subject,
        environment=environment,
        policy_digest=policy_digest,
        now=trust.now,
    )


def vote_of(
    approval: VerifiedApproval,
    signer: Signer,
    root: TrustRoot,
    *,
    id: str,  # noqa: A002 - the name of the field
    signed: bool,
    first_seen: datetime,
) -> ApprovalVote:
    """Return the vote of one signer of a verified decision."""
    predicate = approval.statement.predicate
    approves = predicate.decision is ApprovalDecision.APPROVE
    return ApprovalVote(
        principal=signer.principal,
        name=approval.statement.subject_name,
        approves=approves,
        signed=signed,
        id=id,
        policy_digest=predicate.policy_digest,
        first_seen=first_seen,
        roles=_roles(root, signer.keyid) if signed else frozenset(),
        expires=predicate.expires,
        issued=predicate.issued_at or (None if approves else first_seen),
        reason=predicate.reason or "",
        about=predicate.about,
    )


def _roles(root: TrustRoot, keyid: str) -> frozenset[str]:
    return frozenset(name for name in root.document.roles if any(keyid == known for known in root.role_keys(name)))


def role_members(trust: TrustContext) -> Mapping[str, frozenset[str]]:
    """Return the people with a valid key for each role."""
    root, now = trust.root, trust.now
    return {
        name: frozenset(key.principal for keyid, key in root.role_keys(name).items() if not root.void(keyid, now))
        for name in root.document.roles
    }
