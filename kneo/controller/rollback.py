"""A requested rollback: release an earlier bundle of this environment at once, and hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kneo import registry
from kneo.controller.registry_cache import served_by
from kneo.controller.stages.apply import apply
from kneo.controller.stages.approvals import ApprovalVote
from kneo.controller.stages.evidence import gather_evidence
from kneo.controller.stages.gates import FORWARD_GATES, ROLLBACK_GATES, Allowed, Evidence, evaluate_gates, rules_of
from kneo.controller.stages.plan import ReleasePlan, Rollback
from kneo.controller.stages.report import notices_of_changes
from kneo.controller.stages.verify import TrustConfig, TrustContext, candidate_of, check_spec
from kneo.digest import Digest
from kneo.errors import Conflict
from kneo.notify import outbox
from kneo.records.canary import CanaryState
from kneo.records.release import Hold
from kneo.registry.canaries import end
from kneo.spec.models.environment import Environment
from kneo.store import canaries, releases
from kneo.store.engine import Store
from kneo.store.requests import Lease, check_lease


@dataclass(frozen=True, kw_only=True)
class RollbackRequest:
    """A request to roll back a bundle.

    Args:
        environment: Name of the environment.
        bundle: Name of the bundle.
        version: A version or digest that was released here before; None for the previous one.
        reason: Reason for the environment's history.
        actor: The requester.
        replaces: The digest of the release that the requester saw, and may replace; None for any.
    """

    environment: str
    bundle: str
    version: str | None
    reason: str
    actor: str
    replaces: str | None = None


def parse_rollback(payload: Mapping[str, object], actor: str) -> RollbackRequest:
    """Read a rollback from the payload of a request row."""
    version, replaces = payload.get("to"), payload.get("replaces")
    return RollbackRequest(
        environment=str(payload.get("environment")),
        bundle=str(payload.get("bundle")),
        version=str(version) if version else None,
        reason=str(payload.get("reason") or ""),
        actor=actor,
        replaces=str(replaces) if replaces else None,
    )


def roll_back(
    store: Store, request: RollbackRequest, lease: Lease, config: TrustConfig, channels: Sequence[str] = ()
) -> dict[str, object]:
    """Release an earlier bundle, hold it and notify, in one transaction.

    Raises:
        NotFound: the bundle is not released here, or the version never was.
        Conflict: a gate blocks it, whose reason is the code; or the release changed since it was requested.
        Untrusted: that version fails verification today.
    """
    name = request.environment
    with store.write() as tx:
        check_lease(tx, lease)
        registry.lock_environment(tx, name)
        environment = registry.declared(tx, name)
        found = registry.rollback_target(tx, name, request.bundle, request.version)
        current, target = found.current, found.target
        if request.replaces not in {None, current.digest}:
            msg = f"The release of {request.bundle[:200]} in {name} changed since this rollback was requested."
            raise Conflict(msg, code="registry_moved", hint=f"Show its releases: kneo status {name}")
        root, key = registry.trust_root(tx, config.pin), config.hmac_key
        trust = TrustContext(root=root, before=None, service_key=config.service_key, hmac_key=key, now=tx.now)
        bundle = registry.check_served(releases.bundle(tx, target.digest), target, environment, root, key)
        check_spec(bundle, (environment,), f"{bundle.name} {bundle.version}")
        evidence = gather_evidence(tx, (environment,), (), trust, served_by(registry.list_served(tx)))
        evidence = _with_requester(evidence, environment, bundle.name, bundle.digest, request.actor)
        plan = ReleasePlan(name, current.revision, (Rollback(candidate_of(bundle, current.revision), current),), {})
        gates = ROLLBACK_GATES if found.goes_back else FORWARD_GATES
        ((action, verdict),) = evaluate_gates(plan, rules_of(environment, None), evidence, gates=gates)
        if not isinstance(verdict, Allowed):
            who = f" It can be unblocked by {', '.join(verdict.who)}." if verdict.who else ""
            raise Conflict(f"{verdict.message}{who}", code=verdict.reason, who=list(verdict.who))
        change = registry.ReleaseChange(
            revision=target.revision,
            policy_digest=environment.policy_digest,
            actor=request.actor,
            reason=request.reason,
        )
        apply(tx, name, [(action, verdict)], change)
        canary = canaries.find_live(tx, name, request.bundle)
        if canary is not None:
            end(tx, canary, CanaryState.ENDED, f"rolled back: {request.reason}", actor=request.actor)
        hold = Hold(
            environment=name,
            bundle=request.bundle,
            digest=bundle.digest,
            actor=request.actor,
            reason=f"rolled back: {request.reason}",
            since=tx.at,
        )
        registry.hold(tx, hold)
        # The released bundle is no longer pending.
        pending = [item for item in releases.pending(tx, name) if item.digest != bundle.digest]
        releases.put_pending(tx, name, pending)
        why = f"requested by {request.actor}: {request.reason}"
        outbox.post(tx, channels, notices_of_changes(name, current.revision, tx.at, [(action, verdict)], why))
    return {"bundle": bundle.name, "version": bundle.version, "digest": bundle.digest, "held": True}


def _with_requester(evidence: Evidence, environment: Environment, bundle: str, digest: Digest, actor: str) -> Evidence:
    """Add the requester's approval, which counts where an environment accepts unsigned approvals."""
    vote = ApprovalVote(
        principal=actor,
        name=bundle,
        approves=True,
        signed=False,
        id="",
        policy_digest=environment.policy_digest,
        first_seen=evidence.now,
        roles=frozenset(),
        issued=evidence.now,
    )
    votes = {**evidence.votes, digest: (*evidence.votes.get(digest, ()), vote)}
    return replace(evidence, votes=votes, requester=actor)
