"""Going back by hand: to something this environment served before, at once, and staying there until somebody says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controller.approvals import ApprovalVote
from controller.registry_state import DecisionTrust, gather_evidence, served_by
from controller.stages.apply import Lease, apply, check_lease
from controller.stages.gates import ROLLBACK_GATES, Allowed, Evidence, evaluate_gates, rules_of
from controller.stages.plan import ReleasePlan, Rollback
from controller.stages.report import notices_of_changes
from controller.stages.verify import TrustContext, candidate_of, check_spec
from kneo import registry
from kneo.digest import Digest
from kneo.errors import Conflict, NotFound
from kneo.notify import outbox
from kneo.records.release import Hold, PromotionKind, Release
from kneo.registry import ReleaseChange
from kneo.spec.models.environment import Environment
from kneo.store import releases
from kneo.store.engine import Store, Tx
from kneo.trust.keys import PublicKey


@dataclass(frozen=True, kw_only=True)
class RollbackRequest:
    """Where to go back to.

    Args:
        environment: Where.
        bundle: Its name.
        version: A version served here before; None is the one served before this one.
        reason: Why, for its history.
        actor: Who wants it.
    """

    environment: str
    bundle: str
    version: str | None
    reason: str
    actor: str


def roll_back(
    store: Store,
    going: RollbackRequest,
    lease: Lease,
    pin: Digest,
    service_key: PublicKey | None,
    hmac_key: str,
    channels: Sequence[str] = (),
) -> dict[str, object]:
    """Serve what was served before, hold it there and tell so, in one transaction.

    Raises:
        NotFound: nothing of it is served here, or the version never was.
        Conflict: a gate does not allow it; the code is its reason.
        Untrusted: nobody vouches for that version any more.
    """
    with store.write() as tx:
        check_lease(tx, lease)
        registry.lock_environment(tx, going.environment)
        environment = registry.declared(tx, going.environment)
        current = _current(tx, going)
        target = _target(tx, going, current)
        trust = TrustContext(root=registry.trust_root(tx, pin), before=None, hmac_key=hmac_key, now=tx.now)
        bundle = registry.check_served(releases.bundle(tx, target.digest), target, environment, trust.root, hmac_key)
        check_spec(bundle, (environment,), f"{bundle.name} {bundle.version}")
        believed = DecisionTrust(root=trust.root, service_key=service_key, now=tx.now)
        everywhere = served_by(releases.list_releases(tx))
        found = gather_evidence(tx, (environment,), (), believed, everywhere)
        seen = _with_actor(found, environment, bundle.name, bundle.digest, going.actor)
        plan = ReleasePlan(
            going.environment, current.revision, (Rollback(candidate_of(bundle, current.revision), current),), {}
        )
        ((action, verdict),) = evaluate_gates(plan, rules_of(environment, None), seen, gates=ROLLBACK_GATES)
        if not isinstance(verdict, Allowed):
            who = f" It could be given by {', '.join(verdict.who)}." if verdict.who else ""
            raise Conflict(f"{verdict.message}{who}", code=verdict.reason, who=list(verdict.who))
        change = ReleaseChange(
            revision=target.revision, policy_digest=environment.policy_digest, actor=going.actor, reason=going.reason
        )
        apply(tx, going.environment, [(action, verdict)], change)
        hold = Hold(
            environment=going.environment,
            bundle=going.bundle,
            digest=bundle.digest,
            actor=going.actor,
            reason=f"rolled back: {going.reason}",
            since=tx.at,
        )
        registry.hold(tx, hold)
        # What waited to be served and is served now waits no more.
        waiting = [item for item in releases.pending(tx, going.environment) if item.digest != bundle.digest]
        releases.put_pending(tx, going.environment, waiting)
        why = f"{going.actor} asked for it: {going.reason}"
        told = notices_of_changes(going.environment, current.revision, tx.at, [(action, verdict)], why)
        outbox.post(tx, channels, told)
    return {"bundle": bundle.name, "version": bundle.version, "digest": bundle.digest, "held": True}


def _with_actor(seen: Evidence, environment: Environment, bundle: str, digest: Digest, actor: str) -> Evidence:
    """Count whoever asks as somebody who agrees, where the service's word for it is enough."""
    vote = ApprovalVote(
        principal=actor,
        name=bundle,
        approves=True,
        signed=False,
        id="",
        policy_digest=environment.policy_digest,
        first_seen=seen.now,
        roles=frozenset(),
        issued=seen.now,
    )
    return replace(seen, votes={**seen.votes, digest: (*seen.votes.get(digest, ()), vote)}, requester=actor)


def _current(tx: Tx, going: RollbackRequest) -> Release:
    current = releases.release(tx, going.environment, going.bundle)
    if current is None:
        msg = f"{going.environment} does not serve {going.bundle[:200]}."
        raise NotFound(msg, code="not_served", hint="kneo status shows what it serves.")
    return current


def _target(tx: Tx, going: RollbackRequest, current: Release) -> Release:
    for promotion in releases.list_promotions(tx, going.environment, going.bundle):
        if promotion.kind is PromotionKind.RETIRE or promotion.to_digest in {None, current.digest}:
            continue
        if going.version in {None, promotion.version, promotion.to_digest}:
            return replace(
                current,
                version=str(promotion.version),
                digest=str(promotion.to_digest),
                revision=promotion.revision,
            )
    wanted = going.version or "anything else"
    msg = f"{going.environment} never served {wanted[:100]} of {going.bundle[:200]}."
    raise NotFound(msg, code="never_served", hint=f"kneo history {going.environment} {going.bundle} lists what it did.")


def parse_rollback(payload: Mapping[str, object], actor: str) -> RollbackRequest:
    """Read a request row."""
    version = payload.get("to")
    return RollbackRequest(
        environment=str(payload.get("environment")),
        bundle=str(payload.get("bundle")),
        version=str(version) if version else None,
        reason=str(payload.get("reason") or ""),
        actor=actor,
    )
