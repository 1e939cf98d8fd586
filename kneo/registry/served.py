"""The releases that an environment serves, those that their promotion and its audit event say; and the target of a rollback.

A row of releases alone proves nothing: each person who can write to the database can write one. It counts where the latest promotion
of its bundle in its environment has the service key's authentication and names this very release, and the audit event of that promotion
says the same. Every reader of releases, the start of a run as well as the controller, asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from kneo.errors import NotFound, Untrusted
from kneo.records.audit import AuditEvent, SealedEvent, leaf_of
from kneo.records.release import Promotion, PromotionKind, Release
from kneo.store import audit, releases
from kneo.store.engine import Tx
from kneo.store.releases import StoredRelease
from kneo.trust.verify import UNSEQUENCED

NOT_PROMOTED, PROMOTIONS_LOST = "ReleaseNotPromoted", "PromotionsLost"

EVENTS: Mapping[PromotionKind, str] = {
    PromotionKind.PROMOTE: "release.promoted",
    PromotionKind.ROLLBACK: "release.rolled_back",
    PromotionKind.RETIRE: "release.retired",
}
"""The audit event of each kind of promotion."""

HINT = "Runs are refused until the controller has reconciled the environment. Find out who can write to the database."


@dataclass(frozen=True, kw_only=True)
class DoubtedRelease:
    """A row of releases that no promotion explains, and why."""

    release: Release
    error: Untrusted


@dataclass(frozen=True, kw_only=True)
class ReadReleases:
    """The releases in the database: served ones, and rows that do not count."""

    served: tuple[Release, ...]
    doubted: tuple[DoubtedRelease, ...]


def facts_of(promotion: Promotion) -> dict[str, object]:
    """Return what the audit event of a promotion says about it."""
    return {
        "promotion": promotion.id,
        "bundle": promotion.bundle,
        "version": promotion.version,
        "from_digest": promotion.from_digest,
        "to_digest": promotion.to_digest,
        "revision": promotion.revision,
        "approvals": list(promotion.approvals),
        "reason": promotion.reason,
    }


def read_releases(tx: Tx, environment: str | None = None, names: Collection[str] | None = None) -> ReadReleases:
    """Read releases: of all environments or one, of all bundles or these."""
    rows = releases.list_releases(tx, environment, names)
    if not rows:
        return ReadReleases(served=(), doubted=())
    latest = releases.latest_promotions(tx, environment, names)
    events = audit.events_by_id(tx, {promotion.audit_event_id for promotion in latest.values()})
    served, doubted = list[Release](), list[DoubtedRelease]()
    for row in rows:
        promotion = latest.get((row.environment, row.bundle))
        problem = _problem(row, promotion, events.get(promotion.audit_event_id) if promotion else None)
        if problem is None:
            served.append(row)
        else:
            doubted.append(DoubtedRelease(release=row, error=_doubt(row, problem)))
    return ReadReleases(served=tuple(served), doubted=tuple(doubted))


def list_served(tx: Tx, environment: str | None = None, names: Collection[str] | None = None) -> tuple[Release, ...]:
    """List the served releases: of all environments or one, of all bundles or these."""
    return read_releases(tx, environment, names).served


def find_served(tx: Tx, environment: str, bundle: str) -> Release | None:
    """Return the served release of a bundle."""
    return next(iter(list_served(tx, environment, [bundle])), None)


def check_promoted(tx: Tx, stored: StoredRelease) -> SealedEvent:
    """Check that a release counts; return the audit event of its promotion.

    Raises:
        Untrusted: ``ReleaseNotPromoted``.
    """
    release, promotion, event = stored.release, stored.promotion, stored.event
    if promotion is None:
        # A later row that is not authentic does not count.
        promotion = releases.latest_promotion(tx, release.environment, release.bundle)
        event = audit.event(tx, promotion.audit_event_id) if promotion is not None else None
    problem = _problem(release, promotion, event)
    if problem is not None or event is None:
        raise _doubt(release, problem or "")
    return event


def find_contradiction(tx: Tx, promotion: Promotion) -> str | None:
    """Return how the audit log contradicts a promotion; ``None`` where its event says the same."""
    event = audit.event(tx, promotion.audit_event_id)
    if event is not None and _is_same(event, promotion):
        return None
    return f"The audit log does not say what the promotion {promotion.id} of {promotion.bundle} says."


def find_lost_promotions(tx: Tx, environment: str) -> str | None:
    """Return as a problem that promotions were removed from the registry or its audit log; ``None`` where none is missing."""
    recorded = audit.count_types(tx, environment, EVENTS.values())
    stored = releases.count_promotions(tx, environment)
    if recorded == stored:
        return None
    return f"the audit log has {recorded} changes of the releases of {environment}, and the registry {stored}"


def find_restorable(tx: Tx, row: Release) -> Release | None:
    """Return the release that a doubted row stands in place of, as the latest promotion says; ``None`` for none."""
    promotion = releases.latest_promotion(tx, row.environment, row.bundle)
    release = _release(promotion) if promotion is not None else None
    event = audit.event(tx, promotion.audit_event_id) if promotion is not None else None
    return release if release is not None and _problem(release, promotion, event) is None else None


def _release(promotion: Promotion) -> Release | None:
    """Return the release that a promotion made; ``None`` for one that ended a release."""
    if promotion.kind is PromotionKind.RETIRE or promotion.to_digest is None or promotion.version is None:
        return None
    return Release(
        environment=promotion.environment,
        bundle=promotion.bundle,
        version=promotion.version,
        digest=promotion.to_digest,
        revision=promotion.revision,
        promotion_id=promotion.id,
        since=promotion.at,
    )


def _problem(release: Release, promotion: Promotion | None, event: SealedEvent | None) -> str | None:
    """Return why a release does not count. Pure."""
    if promotion is None:
        return "no promotion says so"
    if _release(promotion) != release:
        kind = {PromotionKind.RETIRE: "retired it", PromotionKind.ROLLBACK: "rolled it back to"}.get(
            promotion.kind, "released"
        )
        to = f" {promotion.version} ({promotion.to_digest})" if promotion.kind is not PromotionKind.RETIRE else ""
        return f"its latest promotion {promotion.id} {kind}{to}"
    if event is None:
        return f"the audit event of its promotion {promotion.id} is missing"
    if not _is_same(event, promotion):
        return f"the audit event of its promotion {promotion.id} says something else"
    return None


def _is_same(sealed: SealedEvent, promotion: Promotion) -> bool:
    """Return whether an audit event, unchanged since it was sealed, says what a promotion says."""
    is_unchanged = sealed.leaf is None or leaf_of(sealed.event.canonical()) == sealed.leaf
    return is_unchanged and _says(sealed.event, promotion)


def _says(event: AuditEvent, promotion: Promotion) -> bool:
    expected = facts_of(promotion)
    return (event.event_type, event.environment, event.actor) == (
        EVENTS[promotion.kind],
        promotion.environment,
        promotion.actor,
    ) and {name: event.metadata.get(name) for name in expected} == expected


def _doubt(release: Release, problem: str) -> Untrusted:
    msg = f"{release.bundle} {release.version} is not served in {release.environment} though a row says so: {problem}."
    return Untrusted(msg, code=NOT_PROMOTED, hint=HINT, environment=release.environment, bundle=release.bundle)


@dataclass(frozen=True)
class RollbackTarget:
    """The present release of a bundle, and the one that a rollback returns to."""

    current: Release
    target: Release
    goes_back: bool
    """Whether the target is the earlier version. Versions without a sequence number have no order, and none goes back."""


def rollback_target(tx: Tx, environment: str, bundle: str, version: str | None) -> RollbackTarget:
    """Return what a rollback of a bundle would replace, and by what.

    Args:
        tx: An open transaction.
        environment: Name of the environment.
        bundle: Name of the bundle.
        version: A version or digest that was released here before; None for the previous one.

    Raises:
        NotFound: the bundle is not released here, or the version never was.
    """
    current = find_served(tx, environment, bundle)
    if current is None:
        msg = f"{bundle[:200]} is not released to {environment}."
        raise NotFound(msg, code="not_served", hint=f"Show its releases: kneo status {environment}")
    target = _released_before(tx, current, version)
    before, after = releases.bundle(tx, target.digest), releases.bundle(tx, current.digest)
    goes_back = before is not None and after is not None and UNSEQUENCED < before.seq < after.seq
    return RollbackTarget(current, target, goes_back)


def _released_before(tx: Tx, current: Release, version: str | None) -> Release:
    for promotion in releases.list_promotions(tx, current.environment, current.bundle):
        if promotion.kind is PromotionKind.RETIRE or promotion.to_digest in {None, current.digest}:
            continue
        if version in {None, promotion.version, promotion.to_digest}:
            return replace(
                current,
                version=str(promotion.version),
                digest=str(promotion.to_digest),
                revision=promotion.revision,
            )
    what = f"Version {version[:100]}" if version else "Another version"
    msg = f"{what} of {current.bundle[:200]} was never released to {current.environment}."
    hint = f"Show its history: kneo history {current.environment} {current.bundle}"
    raise NotFound(msg, code="never_served", hint=hint)
