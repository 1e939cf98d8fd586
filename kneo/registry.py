"""The registry: what each environment serves, since when, and why not something else.

The controller writes here, the runtime reads here, and they meet nowhere else. Every change is made inside a
transaction that the caller opens, together with its audit event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from kneo.clock import new_id, parse_time
from kneo.digest import Digest, digest_of
from kneo.errors import Forbidden, KneoError, NotFound, Untrusted
from kneo.spec.environment import Environment, parse_environment
from kneo.state.release import (
    BundleRecord,
    Condition,
    ConditionType,
    EnvironmentRecord,
    Pending,
    Promotion,
    PromotionKind,
    Release,
)
from kneo.store import audit, releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.root import TrustRoot, parse_root, verify_chain
from kneo.trust.verified import VerifiedBundle
from kneo.trust.verify import verify_bundle

CONTROLLER = "controller"
"""The actor of what follows from a commit."""

EVENTS: Mapping[PromotionKind, str] = {
    PromotionKind.PROMOTE: "release.promoted",
    PromotionKind.ROLLBACK: "release.rolled_back",
    PromotionKind.RETIRE: "release.retired",
}


@dataclass(frozen=True)
class EnvironmentStatus:
    """Everything that is known of one environment."""

    record: EnvironmentRecord | None
    name: str
    conditions: tuple[Condition, ...]
    releases: tuple[Release, ...]

    @property
    def pending(self) -> tuple[Pending, ...]:
        return self.record.pending if self.record else ()


def environment_subject(name: str) -> str:
    """How conditions name an environment."""
    return f"environment/{name}"


def accept_roots(tx: Tx, envelopes: Iterable[bytes], *, revision: str) -> None:
    """Keep a verified chain of trust roots; each new one is audited."""
    known = {digest for _, digest, _ in releases.trust_chain(tx)}
    for data in envelopes:
        envelope = parse_envelope(data)
        if envelope.digest in known:
            continue
        version = parse_root(envelope.payload).version
        releases.insert_trust_root(tx, version, envelope.digest, data)
        metadata = {"version": version, "digest": envelope.digest, "revision": revision}
        audit.record(tx, "trust.accepted", actor=CONTROLLER, metadata=metadata)


def promote(
    tx: Tx, *, environment: str, bundle: BundleRecord, kind: PromotionKind, current: Release | None, revision: str
) -> Release:
    """Serve a bundle in an environment from now on."""
    releases.insert_bundle(tx, bundle)
    promotion = _record_promotion(
        tx,
        environment=environment,
        bundle=bundle.name,
        kind=kind,
        from_digest=current.digest if current else None,
        to_digest=bundle.digest,
        version=bundle.version,
        revision=revision,
    )
    release = Release(
        environment=environment,
        bundle=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        revision=revision,
        promotion_id=promotion.id,
        since=tx.at,
    )
    releases.put_release(tx, release)
    return release


def retire(tx: Tx, current: Release, *, revision: str) -> None:
    """Stop serving a bundle in an environment."""
    _record_promotion(
        tx,
        environment=current.environment,
        bundle=current.bundle,
        kind=PromotionKind.RETIRE,
        from_digest=current.digest,
        to_digest=None,
        version=None,
        revision=revision,
    )
    releases.retire_release(tx, current.environment, current.bundle)


def _record_promotion(
    tx: Tx,
    *,
    environment: str,
    bundle: str,
    kind: PromotionKind,
    from_digest: str | None,
    to_digest: str | None,
    version: str | None,
    revision: str,
) -> Promotion:
    event = audit.record(
        tx,
        EVENTS[kind],
        actor=CONTROLLER,
        environment=environment,
        metadata={
            "bundle": bundle,
            "version": version,
            "from_digest": from_digest,
            "to_digest": to_digest,
            "revision": revision,
        },
    )
    promotion = Promotion(
        id=new_id("prom", tx.now),
        environment=environment,
        bundle=bundle,
        kind=kind,
        from_digest=from_digest,
        to_digest=to_digest,
        version=version,
        actor=CONTROLLER,
        revision=revision,
        audit_event_id=event.id,
        at=tx.at,
    )
    releases.insert_promotion(tx, promotion)
    return promotion


def accept_environment(tx: Tx, name: str, declaration: bytes, policy_digest: str, revision: str) -> None:
    """Take an environment file as the one in force; its change of rules is audited."""
    before = releases.environment(tx, name)
    if before is not None and before.declaration == declaration:
        return
    releases.put_environment(tx, name, declaration, policy_digest, revision)
    if before is None or before.policy_digest != policy_digest:
        audit.record(
            tx,
            "environment.declared" if before is None else "environment.changed",
            actor=CONTROLLER,
            environment=name,
            metadata={
                "policy_digest": policy_digest,
                "previous": before.policy_digest if before else None,
                "revision": revision,
            },
        )


def report_pending(tx: Tx, environment: str, items: Iterable[Pending], *, revision: str) -> None:
    """Replace what an environment waits for; each new reason to wait or refuse is audited once."""
    items = tuple(items)
    before = releases.pending(tx, environment)
    if items == before:
        return
    releases.put_pending(tx, environment, items)
    for item in items:
        if item in before:
            continue
        audit.record(
            tx,
            "bundle.rejected" if item.gate == "verify" else "release.waiting",
            actor=CONTROLLER,
            environment=environment,
            metadata={
                "bundle": item.bundle,
                "version": item.version,
                "gate": item.gate,
                "reason": item.reason,
                "message": item.message,
                "revision": revision,
            },
        )


def report_conditions(tx: Tx, subject: str, items: Iterable[Condition]) -> None:
    """Replace a subject's conditions. Nothing is written, and no time moves, when nothing changed."""
    wanted = {item.type: item for item in items}
    before = {item.type: item for item in releases.list_conditions(tx, subject)}
    for kind in before.keys() - wanted.keys():
        releases.delete_condition(tx, subject, kind)
    for kind, item in wanted.items():
        old = before.get(kind)
        if old is not None and _same(old, item):
            continue
        turned = old is None or (old.status, old.reason) != (item.status, item.reason)
        releases.put_condition(tx, subject, item, since=tx.at if turned or old is None else old.since)
        if kind is ConditionType.STALLED and turned:
            audit.record(
                tx,
                "environment.stalled",
                actor=CONTROLLER,
                environment=subject.removeprefix("environment/"),
                metadata={"reason": item.reason, "message": item.message, "revision": item.revision},
            )


def _same(one: Condition, other: Condition) -> bool:
    return (one.status, one.reason, one.message, one.revision) == (
        other.status,
        other.reason,
        other.message,
        other.revision,
    )


def status(tx: Tx, name: str) -> EnvironmentStatus | None:
    """Read everything known of an environment; ``None`` when Git never declared it."""
    record = releases.environment(tx, name)
    conditions = releases.list_conditions(tx, environment_subject(name))
    if record is None and not conditions:
        return None
    return EnvironmentStatus(record, name, conditions, releases.list_releases(tx, name))


def statuses(tx: Tx) -> tuple[EnvironmentStatus, ...]:
    """Read every environment's status, by name."""
    found = (status(tx, name) for name in releases.environment_names(tx))
    return tuple(item for item in found if item is not None)


# ---- what may run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Approved:
    """A release that was looked up, re-hashed and re-verified just now: the very bytes that may run."""

    release: Release
    bundle: VerifiedBundle
    audit_seq: int | None
    """Place of the promotion in the audit chain; ``None`` while it waits to be sealed."""


@lru_cache(maxsize=64)
def _parsed(declaration: bytes, name: str) -> Environment:
    return parse_environment(declaration, file=f"environments/{name}.yaml")


def declared(tx: Tx, name: str) -> Environment:
    """Read the environment file in force.

    Raises:
        NotFound: Git never declared this environment, or never validly.
    """
    record = releases.environment(tx, name)
    if record is None:
        names = ", ".join(item.name for item in releases.list_environments(tx)) or "none"
        msg = f"There is no environment {name[:80]!r}; declared: {names}."
        raise NotFound(msg, code="environment_not_found")
    return _parsed(record.declaration, name)


def trust_root(tx: Tx, pin: Digest | None) -> TrustRoot:
    """Walk the accepted trust roots.

    Args:
        tx: An open transaction.
        pin: The first root this process believes; ``None`` believes the first one the controller accepted.

    Raises:
        Untrusted: the stored chain does not start at the pin or does not hold together.
    """
    chain = releases.trust_chain(tx)
    if not chain:
        msg = "No trust root was ever accepted on this database."
        raise Untrusted(msg, code="no_trust_root", hint="Start a controller: kneo up --repo DIR.")
    first = pin or Digest(chain[0][1])
    return verify_chain(first, [envelope for _, _, envelope in chain], tx.now)


def resolve(tx: Tx, reference: str, environment: str, *, pin: Digest | None) -> Approved:
    """Find the release that a reference means in an environment, and prove it.

    Args:
        tx: An open transaction.
        reference: ``name``, ``name@version`` or ``sha256:…``.
        environment: Its name.
        pin: See ``trust_root``.

    Raises:
        NotFound: there is no such environment.
        Forbidden: ``bundle_not_approved``: it does not serve that; says why and what it does serve.
        Untrusted: the stored bytes are not what was approved, or nobody vouches for them any more.
    """
    rules = declared(tx, environment)
    release = _serving(tx, reference, environment)
    record = releases.bundle(tx, release.digest)
    if record is None or digest_of(record.payload) != release.digest:
        msg = f"The stored bytes of {release.bundle} {release.version} are not {release.digest}."
        raise Untrusted(msg, code="bundle_tampered", hint="Restore the registry from a backup or rebuild it from Git.")
    seen = parse_time(record.first_seen_at)
    verified = verify_bundle(
        record.envelope,
        root=trust_root(tx, pin),
        signatures=rules.spec.signatures,
        path=f"bundles/{record.name}/{record.version}.dsse.json",
        environment=environment,
        now=seen,
        first_seen=seen,
    )
    if verified.digest != release.digest:
        msg = f"The stored envelope of {release.bundle} {release.version} is {verified.digest}, not {release.digest}."
        raise Untrusted(msg, code="bundle_tampered", hint="Restore the registry from a backup or rebuild it from Git.")
    promotion = releases.promotion(tx, release.promotion_id)
    seq = audit.seq_of(tx, promotion.audit_event_id) if promotion else None
    return Approved(release, verified, seq)


def _serving(tx: Tx, reference: str, environment: str) -> Release:
    serving = releases.list_releases(tx, environment)
    for release in serving:
        if reference in {release.bundle, f"{release.bundle}@{release.version}", release.digest}:
            return release
    raise _not_approved(tx, reference, environment, serving)


def _not_approved(tx: Tx, reference: str, environment: str, serving: tuple[Release, ...]) -> KneoError:
    name, _, version = reference.partition("@")
    approved = [f"{item.bundle}@{item.version}" for item in serving]
    reason = f"{environment} does not serve {reference[:200]}."
    waits = next((item for item in releases.pending(tx, environment) if item.bundle == name), None)
    if waits is not None and version in {"", waits.version}:
        reason = f"{reason} {waits.reason}: {waits.message}"
    return Forbidden(
        reason,
        code="bundle_not_approved",
        hint=f"Approved there: {', '.join(approved) or 'nothing'}.",
        environment=environment,
        approved=approved,
        reason=waits.reason if waits is not None and version in {"", waits.version} else "NotReleased",
    )
