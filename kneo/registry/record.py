"""Writes of the controller: accepted files, promotions, pending changes with their plans, and conditions."""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.clock import new_id
from kneo.digest import digest_of_json
from kneo.records import canary
from kneo.records.audit import AuditEvent
from kneo.records.release import (
    BundleRecord,
    Condition,
    ConditionType,
    EnvironmentRecord,
    Pending,
    PendingPlan,
    Promotion,
    PromotionKind,
    Release,
)
from kneo.registry.controls import CHANGED, DECLARED
from kneo.registry.served import EVENTS, DoubtedRelease, facts_of, find_restorable, read_releases
from kneo.store import audit, grants, releases
from kneo.store.engine import Tx, lock_table
from kneo.trust.dsse import parse_envelope
from kneo.trust.root import parse_root

CONTROLLER = "controller"
"""The actor of changes that a commit declares."""

ID_CHARS = 32
"""The characters of the id of a pending change: 160 bits of a digest. People decide by this id, so no two changes may have the same one."""

MAX_PLANS = 200
"""Plans that are kept for an environment."""


def environment_subject(name: str) -> str:
    """Return the subject of an environment's conditions."""
    return f"environment/{name}"


def accept_roots(tx: Tx, envelopes: Iterable[bytes], *, revision: str) -> None:
    """Store a verified chain of trust roots, with an audit event for each new root."""
    known = {digest for _, digest, _ in releases.trust_chain(tx)}
    for data in envelopes:
        envelope = parse_envelope(data)
        if envelope.digest in known:
            continue
        version = parse_root(envelope.payload).version
        releases.insert_trust_root(tx, version, envelope.digest, data, revision)
        metadata = {"version": version, "digest": envelope.digest, "revision": revision}
        audit.record(tx, "trust.accepted", actor=CONTROLLER, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ReleaseChange:
    """The cause of a change, for the environment's history.

    Args:
        revision: The commit that declares it.
        policy_digest: Digest of the rules that allowed it.
        approvals: Ids of the approvals that allowed it.
        attestations: Ids of the attestations that allowed it.
        canary: The id of the canary that allowed it.
        actor: The requester of a rollback, else the controller.
        reason: The requester's reason.
    """

    revision: str
    policy_digest: str | None = None
    approvals: tuple[str, ...] = ()
    attestations: tuple[str, ...] = ()
    canary: str | None = None
    actor: str = CONTROLLER
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class BundlePromotion:
    """A bundle to release in place of the current one."""

    bundle: BundleRecord
    kind: PromotionKind
    current: Release | None
    change: ReleaseChange


def promote(tx: Tx, environment: str, items: Sequence[BundlePromotion]) -> tuple[Promotion, ...]:
    """Release bundles to an environment; return the promotions."""
    releases.insert_bundles(tx, [item.bundle for item in items])
    promotions = [
        _promotion(tx, environment, item.bundle.name, item.kind, item.change, item.current, item.bundle)
        for item in items
    ]
    _record(tx, [(promotion, _facts(item)) for promotion, item in zip(promotions, items, strict=True)])
    served = tuple(
        Release(
            environment=environment,
            bundle=item.bundle.name,
            version=item.bundle.version,
            digest=item.bundle.digest,
            revision=item.change.revision,
            promotion_id=promotion.id,
            since=tx.at,
        )
        for item, promotion in zip(items, promotions, strict=True)
    )
    releases.put_releases(tx, served)
    _end_grants(tx, environment, {release.bundle: release.digest for release in served})
    return tuple(promotions)


def _end_grants(tx: Tx, environment: str, released: Mapping[str, str | None]) -> None:
    """End the standing grants for other digests of bundles, behind the lock under which grants are created."""
    lock_table(tx, f"environment/{environment}")
    grants.end_replaced(tx, environment, released, actor=CONTROLLER)


def _promotion(
    tx: Tx,
    environment: str,
    name: str,
    kind: PromotionKind,
    change: ReleaseChange,
    current: Release | None,
    bundle: BundleRecord | None,
) -> Promotion:
    """Return the change from the present release of a bundle to another version, or to none."""
    return Promotion(
        id=new_id("prom", tx.now),
        environment=environment,
        bundle=name,
        kind=kind,
        from_digest=current.digest if current else None,
        to_digest=bundle.digest if bundle else None,
        version=bundle.version if bundle else None,
        actor=change.actor,
        revision=change.revision,
        audit_event_id=new_id("evt", tx.now),
        at=tx.at,
        reason=change.reason,
        approvals=change.approvals,
    )


def _facts(item: BundlePromotion) -> dict[str, object]:
    bundle, change = item.bundle, item.change
    facts = {"seq": bundle.seq, "signers": list(bundle.signers), "policy_digest": change.policy_digest}
    known = {"attestations": list(change.attestations), "canary": change.canary}
    return {**facts, **{name: value for name, value in known.items() if value}}


def update_signatures(tx: Tx, bundle: BundleRecord, *, revision: str) -> None:
    """Replace the stored signatures of an accepted bundle."""
    releases.put_envelope(tx, bundle.digest, bundle.envelope, bundle.signers)
    about = {"bundle": bundle.name, "version": bundle.version, "digest": bundle.digest}
    metadata: dict[str, object] = {**about, "signers": list(bundle.signers)}
    audit.record(tx, "bundle.signatures_changed", actor=CONTROLLER, metadata={**metadata, "revision": revision})


def retire(tx: Tx, current: Release, *, change: ReleaseChange) -> Promotion:
    """Remove the release of a bundle from an environment; return the promotion."""
    promotion = _promotion(tx, current.environment, current.bundle, PromotionKind.RETIRE, change, current, None)
    _record(tx, [(promotion, {"policy_digest": change.policy_digest})])
    releases.retire_release(tx, current.environment, current.bundle)
    _end_grants(tx, current.environment, {current.bundle: None})
    return promotion


def _record(tx: Tx, items: Sequence[tuple[Promotion, Mapping[str, object]]]) -> None:
    """Write promotions and their audit events."""
    audit.record_all(tx, [_event(promotion, facts) for promotion, facts in items])
    releases.insert_promotions(tx, [promotion for promotion, _ in items])


def _event(promotion: Promotion, facts: Mapping[str, object]) -> AuditEvent:
    return AuditEvent(
        id=promotion.audit_event_id,
        at=promotion.at,
        event_type=EVENTS[promotion.kind],
        actor=promotion.actor,
        environment=promotion.environment,
        metadata={**facts_of(promotion), **facts},
    )


def restore_releases(tx: Tx, environment: str) -> tuple[DoubtedRelease, ...]:
    """Replace the rows of releases that no promotion explains by what the latest promotions say; return them."""
    doubted = read_releases(tx, environment).doubted
    for item in doubted:
        row, release = item.release, find_restorable(tx, item.release)
        if release is not None:
            releases.put_releases(tx, [release])
        else:
            releases.retire_release(tx, environment, row.bundle)
        audit.record(
            tx,
            "release.restored",
            actor=CONTROLLER,
            environment=environment,
            metadata={
                "bundle": row.bundle,
                "version": release.version if release is not None else None,
                "digest": release.digest if release is not None else None,
                "found_version": row.version,
                "found_digest": row.digest,
                "reason": item.error.message,
            },
        )
    return doubted


def accept_environment(
    tx: Tx,
    name: str,
    declaration: bytes,
    policy_digest: str,
    *,
    revision: str,
    epoch: str,
    approvals: Sequence[str] = (),
    overruled: Sequence[str] = (),
) -> EnvironmentRecord:
    """Store an environment file as the one in force, with an audit event for changed rules; return its record.

    Args:
        tx: The transaction.
        name: The environment.
        declaration: Its file.
        policy_digest: The digest of its rules.
        revision: The commit.
        epoch: The digest of the trust and the rules under which its releases are verified.
        approvals: Ids of the approvals of the change.
        overruled: Ids of the rejections that the change ends.
    """
    before = releases.environment(tx, name)
    changes = before is None or before.policy_digest != policy_digest
    record = EnvironmentRecord(
        name=name,
        declaration=declaration,
        policy_digest=policy_digest,
        revision=revision,
        pending=(),
        updated_at=tx.at,
        previous=(before.declaration if before else None) if changes else (before.previous if before else None),
        policy_revision=revision if changes or before is None else before.policy_revision,
        policy_approved=bool(approvals) if changes or before is None else before.policy_approved,
        trust_epoch=epoch,
    )
    if before is not None and record == replace(before, pending=(), updated_at=tx.at):
        return record
    releases.put_environments(tx, [record])
    if changes:
        if before is not None:
            releases.keep_replaced_file(tx, before)
        releases.overrule(tx, overruled, policy_digest)
        audit.record(
            tx,
            DECLARED if before is None else CHANGED,
            actor=CONTROLLER,
            environment=name,
            metadata={
                "policy_digest": policy_digest,
                "previous": before.policy_digest if before else None,
                "revision": revision,
                "approvals": list(approvals),
                "overruled": list(overruled),
            },
        )
    return record


def move_environments(tx: Tx, records: Sequence[EnvironmentRecord], revision: str) -> None:
    """Let environments that a commit does not change stand as of that commit: their files in force, and their conditions."""
    releases.put_environments(tx, [replace(item, revision=revision) for item in records if item.revision != revision])
    releases.move_conditions(tx, [environment_subject(item.name) for item in records], revision)


def report_pending(tx: Tx, environment: str, items: Iterable[Pending], *, revision: str) -> tuple[Pending, ...]:
    """Replace the pending changes of an environment, with one audit event for each new reason.

    Returns:
        The new ones.
    """
    before = {item.bundle: item for item in releases.pending(tx, environment)}
    pending = tuple(_dated(tx, environment, item, before.get(item.bundle)) for item in items)
    if {item.bundle: item for item in pending} == before:
        return ()
    releases.put_pending(tx, environment, pending)
    added = tuple(item for item in pending if _differs(item, before.get(item.bundle)))
    for item in added:
        audit.record(
            tx,
            "bundle.rejected" if item.gate == "verify" else "release.waiting",
            actor=CONTROLLER,
            environment=environment,
            metadata={
                "bundle": item.bundle,
                "version": item.version,
                "digest": item.digest,
                "gate": item.gate,
                "reason": item.reason,
                "message": item.message,
                "revision": revision,
            },
        )
    return added


def _dated(tx: Tx, environment: str, item: Pending, before: Pending | None) -> Pending:
    about = [environment, item.bundle, item.kind, item.version, item.digest, item.subject]
    digest = bytes.fromhex(digest_of_json(about).removeprefix("sha256:"))
    name = f"pend_{b32encode(digest).decode().lower()[:ID_CHARS]}"
    same = before is not None and _waits_for(before) == _waits_for(item)
    return replace(item, id=name, since=before.since if same and before is not None else tx.at)


def _waits_for(item: Pending) -> tuple[object, ...]:
    return item.kind, item.version, item.digest, item.subject, item.gate, item.reason


def _differs(item: Pending, before: Pending | None) -> bool:
    return before is None or _lasting(item) != _lasting(before)


def _lasting(item: Pending) -> Pending:
    """Return a pending change without what differs at each reconciliation: a canary's message counts its runs."""
    counts = item.gate == canary.GATE
    return replace(item, id="", who=(), since="", message="" if counts else item.message)


@dataclass(frozen=True)
class PlannedChange:
    """A pending change: its name among those of the environment, what it replaces, its comparison when it is needed, and the facts
    about its bundle, which change while it is pending.
    """

    name: str
    base: str | None
    content: Callable[[], Mapping[str, object]]
    facts: Sequence[Mapping[str, object]] = ()


def keep_plans(tx: Tx, environment: str, changes: Iterable[PlannedChange]) -> None:
    """Store the plan of each pending change, again where its facts differ, and delete those of changes that are not pending any more."""
    known = releases.plan_bases(tx, environment)
    wanted = list(changes)[:MAX_PLANS]
    if not wanted and not known:
        return
    ids = {item.bundle: item.id for item in releases.pending(tx, environment)}
    present = {ids[change.name]: change for change in wanted if change.name in ids}
    releases.delete_plans(tx, known.keys() - present.keys())
    for identity, change in present.items():
        if identity not in known or known[identity] != change.base or _has_new_facts(tx, identity, change):
            plan = PendingPlan(id=identity, environment=environment, base=change.base, content=change.content())
            releases.put_plan(tx, plan)


def _has_new_facts(tx: Tx, identity: str, change: PlannedChange) -> bool:
    """Return whether the kept plan of a pending change states other facts; one without evidence rules is not read."""
    kept = releases.pending_plan(tx, identity) if change.facts else None
    return bool(change.facts) and (kept is None or kept.content.get("facts") != list(change.facts))


def report_conditions(tx: Tx, subject: str, items: Iterable[Condition]) -> None:
    """Replace a subject's conditions; an unchanged condition is not written and keeps its time."""
    conditions = {item.type: item for item in items}
    before = {item.type: item for item in releases.list_conditions(tx, subject)}
    for kind in before.keys() - conditions.keys():
        releases.delete_condition(tx, subject, kind)
    changed = []
    for kind, item in conditions.items():
        old = before.get(kind)
        if old is not None and old == replace(item, since=old.since):
            continue
        turned = old is None or (old.status, old.reason) != (item.status, item.reason)
        changed.append(replace(item, since=tx.at if turned or old is None else old.since))
        if kind is ConditionType.STALLED and turned:
            audit.record(
                tx,
                "environment.stalled",
                actor=CONTROLLER,
                environment=subject.removeprefix("environment/"),
                metadata={"reason": item.reason, "message": item.message, "revision": item.revision},
            )
    releases.put_conditions(tx, subject, changed)
