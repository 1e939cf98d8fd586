"""Which recorded or committed decisions count: verified one by one, under the trust in force. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kneo.clock import isoformat, parse_time
from kneo.digest import Digest, digest_of_json
from kneo.errors import KneoError
from kneo.state.people import same_person
from kneo.state.release import ApprovalRecord
from kneo.trust.about import About
from kneo.trust.approvals import verify_approval, verify_recorded_approval
from kneo.trust.dsse import parse_envelope
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot
from kneo.trust.signers import find_signers
from kneo.trust.statement import Decision, parse_approval
from kneo.trust.verified import VerifiedApproval

GIT = "git"
REGISTRY = "registry"


@dataclass(frozen=True)
class Vote:
    """One person's latest decision about one thing under one set of rules."""

    principal: str
    approves: bool
    signed: bool
    id: str
    policy_digest: str
    first_seen: datetime
    roles: frozenset[str]
    """Roles of the trust root that the key has; none for somebody whom the service authenticated."""

    about: About | None = None
    """What was decided about, where that is no bundle and no set of rules."""


Votes = Mapping[str, tuple[Vote, ...]]
"""Votes by the digest of what they are about."""


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
) -> Votes:
    """Verify decisions about an environment; those that do not hold are left out.

    Args:
        records: In the order in which they were first seen; a person's later word replaces the earlier one, but what
            the service says for somebody never replaces what that person signed.
        environment: Its name.
        root: The trust root in force.
        service_key: The key our own service signs with; None believes no unsigned approval.
        now: The one time of this pass.
    """
    latest: dict[str, dict[tuple[str, str, bool], Vote]] = {}
    for record in records:
        try:
            found = _verified(record, environment, root, service_key, now)
        except KneoError:
            continue
        for vote in _votes(record, found, root):
            latest.setdefault(record.subject, {})[same_person(vote.principal), vote.policy_digest, vote.signed] = vote
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
    return verify_recorded_approval(
        record.envelope,
        service_key=service_key,
        bundle_digest=subject,
        environment=environment,
        policy_digest=policy,
        now=now,
    )


def _votes(record: ApprovalRecord, found: VerifiedApproval | None, root: TrustRoot) -> list[Vote]:
    """One vote for the person the record is about; an envelope that several signed has a record for each."""
    signers = [signer for signer in found.signers if signer.principal == record.principal] if found else []
    assert found is not None or not signers
    return [
        Vote(
            principal=signer.principal,
            approves=found is not None and found.statement.predicate.decision is Decision.APPROVE,
            signed=record.signed,
            id=record.id,
            policy_digest=record.policy_digest,
            first_seen=parse_time(record.first_seen_at),
            roles=_roles(root, signer.keyid) if record.signed else frozenset(),
            about=found.statement.predicate.about if found is not None else None,
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
