"""The evidence that gates of an environment decide on: releases, decisions of people, holds and failures, read in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from weakref import WeakKeyDictionary

from kneo import registry
from kneo.clock import isoformat, parse_time
from kneo.controller.stages import verify
from kneo.controller.stages.approvals import GIT, ApprovalVotes, committed_records, count_votes, role_members
from kneo.controller.stages.attestations import (
    StatedFacts,
    StatedResult,
    by_bundle,
    makers_of,
    not_recorded,
    read_attestations,
    verify_attestation,
)
from kneo.controller.stages.gates import Evidence, KnownCanary
from kneo.controller.stages.rejections import AcceptedFiles
from kneo.digest import Digest
from kneo.errors import KneoError
from kneo.records.canary import Canary
from kneo.records.release import ApprovalRecord, AttestationRecord, Release
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.store import attestations, audit, canaries, releases
from kneo.store.engine import Tx
from kneo.trust.record_mac import RecordMacs
from kneo.trust.root import TrustRoot


def gather_evidence(
    tx: Tx,
    files: Sequence[Environment],
    approval_files: Sequence[bytes],
    trust: verify.TrustContext,
    served: Mapping[str, Mapping[str, Release]],
    candidates: Collection[str] = (),
    stated: StatedFacts | None = None,
) -> Evidence:
    """Read the evidence for the gates of an environment, inside the transaction that changes it.

    Args:
        tx: The transaction.
        files: The environment's file, then the one in force before it, where that has other rules.
        approval_files: Approvals in the commit.
        trust: The trust of this reconciliation.
        served: Releases, as this transaction reads them.
        candidates: Digests of the bundles that may be released.
        stated: The attestations; without them those that are recorded are read.
    """
    name = files[0].name
    chained = any(is_chained(file) for file in files)
    soaking = {file.spec.promote_from for file in files if file.spec.soak} - {None}
    votes = count_votes(decisions(tx, name, approval_files, trust), name, trust)
    known = canaries.newest_by_digest(tx, name, candidates)
    return Evidence(
        now=trust.now,
        served=served,
        votes=votes,
        elsewhere=_votes_elsewhere(tx, name, trust) if len(files) > 1 else {},
        files={
            **_named_files(tx, name, votes, {file.policy_digest for file in files}),
            **{file.policy_digest: file for file in files[1:]},
        },
        members=role_members(trust),
        root_expires=trust.root.expires,
        holds=registry.holds_in_force(tx, name),
        suspension=registry.suspension_in_force(tx, name),
        failures={
            release.digest: failed
            for origin in soaking
            for release in served.get(str(origin), {}).values()
            if (failed := releases.last_failure(tx, str(origin), release.digest)) is not None
        },
        served_before=releases.served_before(tx, name, candidates) | releases.qualified(tx, name)
        if chained or known
        else frozenset(),
        facts=stated or stated_facts(tx, files, trust, served.get(name, {}), candidates),
        canaries={digest: KnownCanary(canary, _votes_of(tx, canary, trust)) for digest, canary in known.items()},
    )


def known_canaries(tx: Tx, evidence: Evidence, environment: str, trust: verify.TrustContext) -> Evidence:
    """Return evidence with the canaries as this transaction has changed them."""
    digests = {*evidence.canaries, *(canary.digest for canary in canaries.list_live(tx, environment))}
    known = canaries.newest_by_digest(tx, environment, digests)
    found = {digest: KnownCanary(canary, _votes_of(tx, canary, trust)) for digest, canary in known.items()}
    return replace(evidence, canaries=found)


def _votes_of(tx: Tx, canary: Canary, trust: verify.TrustContext) -> ApprovalVotes:
    """Return the decisions with which a canary began, as they counted then."""
    records = releases.approvals_by_id(tx, canary.approvals) if canary.approvals else ()
    return count_votes(records, canary.environment, replace(trust, now=parse_time(canary.began_at)))


def is_chained(file: Environment) -> bool:
    """Return whether a bundle that an environment served before passes gates that a new one does not."""
    return file.spec.promote_from is not None or bool(file.spec.evidence) or bool(file.canaries)


def stated_facts(
    tx: Tx,
    files: Sequence[Environment],
    trust: verify.TrustContext,
    here: Mapping[str, Release],
    candidates: Collection[str],
    committed: Sequence[bytes] = (),
) -> StatedFacts:
    """Read the attestations about the bundles that may be released, and about those that they are compared with.

    Args:
        tx: The transaction.
        files: The environment's file, then the one in force before it, where that has other rules.
        trust: The trust of this reconciliation.
        here: The environment's releases, by bundle name.
        candidates: Digests of the bundles that may be released.
        committed: Attestation files that are not recorded.
    """
    if not candidates or not any(file.spec.evidence or file.canaries for file in files):
        return StatedFacts()
    current = {release.digest for release in here.values()}
    subjects = {*candidates, *current}
    results, lost = verify_recorded(tx, subjects, trust.root)
    if committed:
        read = read_attestations(committed, trust.root, trust.now)
        found = not_recorded(read, attestations.list_about(tx, subjects), trust.root)
        others = {item.id for item in found}
        kept = (item for item in chain.from_iterable(results.values()) if item.id not in others)
        results = by_bundle((*kept, *(verify_attestation(item, trust.root) for item in found)))
    bundles = {digest: releases.bundle(tx, digest) for digest in current}
    return StatedFacts(
        results=results,
        current={digest: makers_of(bundle) for digest, bundle in bundles.items() if bundle is not None},
        lost=lost,
    )


REMEMBERED, REMEMBERED_READS = 4_096, 64
"""Verified attestations, and sets of bundles with all of theirs, that a process remembers of a database."""

RecordedResults = tuple[Mapping[str, tuple[StatedResult, ...]], str | None]
"""The verified attestations by the digest of their bundle, and the id of one that the registry has lost."""


@dataclass
class _Memory:
    """What a process remembers of the attestations of one database.

    Args:
        verified: What the verification found, by trust root and record.
        read: What was read about a set of bundles, by trust root and bundles, with the version of then.
    """

    verified: dict[tuple[Digest, AttestationRecord], StatedResult | None] = field(default_factory=dict)
    read: dict[tuple[object, ...], tuple[tuple[object, ...], RecordedResults]] = field(default_factory=dict)


_memories: WeakKeyDictionary[RecordMacs, _Memory] = WeakKeyDictionary()
"""By the MACs of each open database."""


def verify_recorded(tx: Tx, subjects: Collection[str], root: TrustRoot) -> RecordedResults:
    """Verify the recorded attestations about some bundles under the trust root in force, each once for the same root and record.

    The verification depends on no clock: a revocation counts as of the first sight, which is recorded. A row that was changed outside
    of Kneo stands for what it was until the next attestation or the end of the process, and then for nothing.
    """
    if not subjects:
        return {}, None
    memory = _memories.setdefault(tx.macs, _Memory())
    key, version = (root.digest, frozenset(subjects)), attestations.find_version(tx, subjects)
    known = memory.read.get(key)
    if known is not None and known[0] == version:
        return known[1]
    found: dict[str, StatedResult | None] = {}
    for record in attestations.list_about(tx, subjects):
        if (root.digest, record) not in memory.verified:
            if len(memory.verified) >= REMEMBERED:
                memory.verified.clear()
            memory.verified[root.digest, record] = verify_attestation(record, root)
        found[record.id] = memory.verified[root.digest, record]
    results = by_bundle(found.values()), attestations.find_lost(tx, subjects, found)
    if len(memory.read) >= REMEMBERED_READS:
        memory.read.clear()
    memory.read[key] = version, results
    return results


def record_attestations(
    tx: Tx, environment: str, files: Sequence[bytes], trust: verify.TrustContext, revision: str
) -> None:
    """Record the attestations of a commit with the time of their first sight. Deleting their files changes nothing."""
    if not files:
        return
    found = read_attestations(files, trust.root, trust.now, revision)
    recorded = attestations.list_about(tx, {item.subject for item in found})
    for item in not_recorded(found, recorded, trust.root):
        attestations.put(tx, item)
        audit.record(
            tx,
            attestations.ACCEPTED,
            actor=registry.CONTROLLER,
            environment=environment,
            metadata={
                "attestation": item.id,
                "bundle": item.name,
                "digest": item.subject,
                "type": item.type,
                "suite_digest": item.suite_digest,
                "payload_digest": item.payload_digest,
                "revision": revision,
            },
        )


def _votes_elsewhere(tx: Tx, name: str, trust: verify.TrustContext) -> ApprovalVotes:
    """Return the decisions about files of other environments."""
    others = (other for other in releases.environment_names(tx) if other != name)
    return {
        subject: about
        for other in others
        for subject, votes in count_votes(decisions(tx, other, (), trust), other, trust).items()
        if (about := tuple(vote for vote in votes if vote.policy_digest == subject))
    }


def _named_files(tx: Tx, name: str, votes: ApprovalVotes, present: Collection[str]) -> AcceptedFiles:
    """Return the earlier files that rejections name; the audit log has those, too, whose rows are missing.

    Args:
        tx: The transaction.
        name: The environment.
        votes: The decisions about it.
        present: The digests of the file in force and the one in the commit.
    """
    named = {vote.policy_digest for about in votes.values() for vote in about if not (vote.approves or vote.overruled)}
    if not named:
        return {}
    found = releases.list_replaced_files(tx, name, named)
    lost = (named - found.keys() - set(present)) & registry.list_accepted_rules(tx, name)
    return {**{digest: _accepted_file(name, digest, text) for digest, text in found.items()}, **dict.fromkeys(lost)}


def _accepted_file(name: str, policy_digest: str, text: bytes) -> Environment | None:
    try:
        file = parse_environment(text, file=f"environments/{name}.yaml", accepted=True)
    except KneoError:
        return None
    return file if file.policy_digest == policy_digest else None


def record_decisions(tx: Tx, environment: str, approval_files: Sequence[bytes], trust: verify.TrustContext) -> None:
    """Record the approvals in a commit with the time of their first sight, which a revocation is compared with."""
    for item in decisions(tx, environment, approval_files, trust) if approval_files else ():
        if item.origin == GIT:
            releases.insert_approval(tx, item)


def decisions(
    tx: Tx, environment: str, approval_files: Sequence[bytes], trust: verify.TrustContext
) -> tuple[ApprovalRecord, ...]:
    """Return the recorded decisions about an environment and those that this commit adds.

    A decision from a commit stays recorded when a later commit deletes its file: a push cannot undo it.
    """
    recorded = releases.list_approvals(tx, environment, unexpired_at=isoformat(trust.now))
    earlier = {(record.payload_digest, record.principal): record for record in recorded}
    committed = committed_records(approval_files, trust.root, earlier, trust.now)
    here = {record.id: record for record in (*recorded, *committed) if record.environment == environment}
    return tuple(sorted(here.values(), key=lambda record: (record.first_seen_at, record.id)))
