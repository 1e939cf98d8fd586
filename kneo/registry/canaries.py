"""Changes of canaries, each with its audit event: by the controller, and by operators."""

from __future__ import annotations

from dataclasses import replace

from kneo.errors import Conflict, NotFound
from kneo.records.canary import Canary, CanaryState
from kneo.registry.decisions import check_reason, lock_environment
from kneo.registry.record import CONTROLLER
from kneo.spec.models.canary import CanaryPlan
from kneo.store import audit, canaries, idempotency
from kneo.store.engine import Tx


def plan_of(canary: Canary) -> CanaryPlan:
    """Return the plan of a canary as it was approved."""
    return CanaryPlan.model_validate(dict(canary.plan))


def record_event(tx: Tx, event: str, after: Canary) -> Canary:
    """Write a canary with the audit event of its change, behind the lock of its environment; return it."""
    about = {"canary": after.id, "bundle": after.bundle, "version": after.version, "digest": after.digest}
    state = {"step": after.step, "share": after.share, "state": after.state.value, "reason": after.reason}
    audit.record(tx, event, actor=after.actor, environment=after.environment, metadata={**about, **state})
    return canaries.put(tx, after)


def end(
    tx: Tx, canary: Canary, state: CanaryState, reason: str, *, actor: str = CONTROLLER, blocks: bool = False
) -> Canary:
    """End a canary; its version gets no further runs, and those that have begun may finish.

    Args:
        tx: The transaction.
        canary: The canary.
        state: ``passed``, ``rolled_back`` or ``ended``.
        reason: Why.
        actor: Who ends it.
        blocks: Whether its version stays blocked until a person restarts it.
    """
    share = 1.0 if state is CanaryState.PASSED else 0.0
    after = replace(canary, state=state, reason=reason, actor=actor, blocks=blocks, share=share, ended_at=tx.at)
    return record_event(tx, "canary.rolled_back" if state is CanaryState.ROLLED_BACK else "canary.ended", after)


def pause(tx: Tx, canary: Canary, reason: str, *, actor: str = CONTROLLER, share: float | None = None) -> Canary:
    """Pause a canary; it keeps its share unless another one is given, and begins no further step."""
    share = canary.share if share is None else share
    after = replace(canary, state=CanaryState.PAUSED, reason=reason, actor=actor, share=share)
    return record_event(tx, "canary.paused", after)


# ---- by operators -------------------------------------------------------------------------------------------------


def find_canary(tx: Tx, environment: str, bundle: str) -> Canary:
    """Return the newest canary of a bundle.

    Raises:
        NotFound: ``canary_not_found``.
        Untrusted, Invalid: something else changed its row.
    """
    canary = canaries.find_latest(tx, environment, bundle)
    if canary is None:
        msg = f"{bundle[:200]} has no canary in {environment[:80]}."
        raise NotFound(msg, code="canary_not_found", hint=f"Declare one in environments/{environment[:80]}.yaml.")
    return canary


def pause_by(tx: Tx, environment: str, bundle: str, reason: str, actor: str) -> Canary:
    """Pause a canary for a person."""
    return pause(tx, _live(tx, environment, bundle, reason), reason, actor=actor)


def resume_by(tx: Tx, environment: str, bundle: str, reason: str, actor: str) -> Canary:
    """Resume a paused canary with the share of its step."""
    canary = _live(tx, environment, bundle, reason)
    if canary.state is not CanaryState.PAUSED:
        msg = f"The canary of {bundle} in {environment} is not paused."
        raise Conflict(msg, code="canary_not_paused")
    share = plan_of(canary).shares[canary.step - 1]
    after = replace(canary, state=CanaryState.RUNNING, reason=reason, actor=actor, share=share, step_at=tx.at)
    return record_event(tx, "canary.resumed", after)


def promote_by(tx: Tx, environment: str, bundle: str, reason: str, actor: str) -> Canary:
    """Ask for the promotion of a version before the last step of its canary: the gates of a promotion without one decide."""
    canary = _live(tx, environment, bundle, reason)
    return record_event(tx, "canary.promotion_requested", replace(canary, promotes=True, reason=reason, actor=actor))


def abort_by(tx: Tx, environment: str, bundle: str, reason: str, actor: str) -> Canary:
    """End a canary; its version stays blocked until a person restarts it."""
    canary = _live(tx, environment, bundle, reason)
    return end(tx, canary, CanaryState.ENDED, reason, actor=actor, blocks=True)


def restart_by(tx: Tx, environment: str, bundle: str, reason: str, actor: str) -> Canary:
    """Let a new canary of a version begin whose canary was rolled back or aborted."""
    canary = _locked(tx, environment, bundle, reason)
    if not canary.blocks:
        msg = f"The canary of {bundle} in {environment} is {canary.state}; only one that was rolled back or aborted restarts."
        raise Conflict(msg, code="canary_not_ended", hint=f"kneo canary status {environment}/{bundle}")
    return record_event(tx, "canary.restarted", replace(canary, blocks=False, reason=reason, actor=actor))


def _live(tx: Tx, environment: str, bundle: str, reason: str) -> Canary:
    canary = _locked(tx, environment, bundle, reason)
    if not canary.is_live:
        msg = f"The canary of {bundle} in {environment} has ended: {canary.state}."
        raise Conflict(msg, code="canary_ended", hint=f"kneo canary status {environment}/{bundle}")
    return canary


def _locked(tx: Tx, environment: str, bundle: str, reason: str) -> Canary:
    check_reason(reason)
    idempotency.bind(tx, environment)
    lock_environment(tx, environment)
    return find_canary(tx, environment, bundle)
