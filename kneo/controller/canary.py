"""The canaries of an environment: begun, stepped, paused, rolled back and ended, each in one transaction with its audit event.

A canary begins and steps in the reconciliation of its environment, with all other gates open. It is rolled back there too, and between
reconciliations: that needs no repository, no window and no person.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kneo import registry
from kneo.clock import new_id, parse_time
from kneo.controller.stages.canary import Advance, RollBack, Stay, StepProgress, Verdict, compare_runs, decide_canary
from kneo.controller.stages.gates import CANARY, REBUILT, ROLLED_BACK, Allowed, Blocked, GateVerdict
from kneo.controller.stages.plan import Action, Promote, ReleasePlan, name_of
from kneo.controller.stages.verify import TrustContext, Verified
from kneo.errors import KneoError
from kneo.records.canary import Canary, CanaryFigures, CanaryState, candidate_part
from kneo.registry import CONTROLLER
from kneo.registry.canaries import end, pause, plan_of, record_event
from kneo.spec.models.environment import Environment
from kneo.store import canaries, releases
from kneo.store.engine import Store, Tx
from kneo.store.requests import Lease, check_lease

log = logging.getLogger("kneo.controller")

SALT_BYTES = 32

HELD_BY = {"hold": "Held", "approvals": "Rejected"}
"""The reason of a pause for each gate that takes the share of a canary away."""


# ---- between reconciliations ---------------------------------------------------------------------------------------


def settle_all(store: Store, lease: Lease) -> frozenset[tuple[str, int]]:
    """Settle the runs of every canary, and roll back those that are worse; return those that a reconciliation changes further.

    Returns:
        The id and the step of each canary that may step forward or was rolled back.

    Raises:
        Transient: the lease was lost; nothing was written.
    """
    with store.read() as tx:
        found = canaries.list_live(tx)
    due: set[tuple[str, int]] = set()
    for canary in found:
        with store.write() as tx:
            check_lease(tx, lease)
            registry.lock_environment(tx, canary.environment)
            now = canaries.find_live(tx, canary.environment, canary.bundle)
            if now is not None:
                _, verdict = settle(tx, now)
                if isinstance(verdict, Advance | RollBack):
                    due.add((now.id, now.step))
    return frozenset(due)


def settle(tx: Tx, canary: Canary) -> tuple[Canary, Verdict]:
    """Settle the runs of a canary and compare them; roll it back where it is worse than its plan allows."""
    plan = plan_of(canary)
    canaries.settle_runs(tx, canary, plan.stop_if, plan.within)
    counted = canaries.list_runs(tx, canary)
    figures = compare_runs(plan, counted, tx.now)
    in_step, known = canaries.count_in_step(tx, canary, plan.within)
    progress = StepProgress(began_at=parse_time(canary.step_at), runs=canaries.count_new_runs(tx, canary), known=known)
    share = plan.shares[canary.step - 1]
    verdict = decide_canary(plan, figures, progress, candidate_part(share), tx.now)
    candidates = sum(run.candidate for run in counted)
    after = replace(
        canary,
        figures=CanaryFigures(
            runs=candidates,
            control=len(counted) - candidates,
            metrics=figures,
            next=verdict.message if isinstance(verdict, Stay) else None,
        ),
        counts=in_step < canaries.MAX_COUNTED,
    )
    if isinstance(verdict, RollBack):
        return end(tx, after, CanaryState.ROLLED_BACK, verdict.message, blocks=True), verdict
    return canaries.put(tx, after) if after != canary else canary, verdict


# ---- in the reconciliation of an environment -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CanaryContext:
    """What a reconciliation knows about the canaries of an environment.

    Args:
        environment: The environment's file.
        revision: The commit.
        plan: The planned changes.
        verified: The declared bundles.
        trust: The trust of this reconciliation.
        rebuilding: Whether the registry is rebuilt from Git, which has no shares.
    """

    environment: Environment
    revision: str
    plan: ReleasePlan
    verified: Verified
    trust: TrustContext
    rebuilding: bool


def follow(tx: Tx, context: CanaryContext, verdicts: Sequence[tuple[Action, GateVerdict]]) -> bool:
    """Begin, step, pause or end the canaries of an environment; return whether a gate may have opened."""
    changes = {name_of(action): (action, verdict) for action, verdict in verdicts}
    live = {canary.bundle: canary for canary in canaries.list_live(tx, context.environment.name)}
    changed = False
    for name, canary in live.items():
        action, verdict = changes.get(name, (None, None))
        changed |= _follow_live(tx, context, canary, action, verdict)
    for name, (action, verdict) in changes.items():
        is_free = canaries.find_live(tx, context.environment.name, name) is None
        if is_free and isinstance(verdict, Blocked) and isinstance(action, Promote):
            changed |= _begin(tx, context, action, verdict)
    return changed


def _follow_live(
    tx: Tx, context: CanaryContext, canary: Canary, action: Action | None, verdict: GateVerdict | None
) -> bool:
    gone = _why_over(context, canary, action)
    if gone is not None:
        end(tx, canary, CanaryState.ENDED, gone)
        return True
    shown = canary.figures
    canary, decided = settle(tx, canary)
    if not canary.is_live:
        return True
    closed = (verdict, *verdict.also) if isinstance(verdict, Blocked) else ()
    if any((item.gate, item.reason) == (CANARY, ROLLED_BACK) for item in closed):
        # A commit of a registry that is rebuilt has its result.
        end(tx, canary, CanaryState.ROLLED_BACK, closed[-1].message, blocks=True)
        return True
    problem = _why_without_share(tx, context, canary, action, closed)
    if problem is not None:
        if canary.share:
            pause(tx, canary, problem, share=0.0)
        return bool(canary.share)
    if isinstance(verdict, Allowed):
        end(tx, canary, CanaryState.PASSED, REBUILT if canary.reason == REBUILT else "promoted")
    is_alone = [item.gate for item in closed] == [CANARY]
    if is_alone and canary.state is CanaryState.RUNNING and isinstance(decided, Advance):
        _advance(tx, canary)
        return True
    return canary.figures != shown


def _why_over(context: CanaryContext, canary: Canary, action: Action | None) -> str | None:
    """Return why a canary is over; None while its version waits for it."""
    if action is None and any(item.bundle == canary.bundle for item in context.verified.rejected):
        return None  # its version fails verification: it gets no runs, and may be verified again
    if action is None or not isinstance(action, Promote) or action.bundle.digest != canary.digest:
        return "Git declares another version"
    declared = context.plan.canaries.get(canary.bundle)
    if declared is None and not canary.promotes:
        return "Git declares no canary any more"
    if declared is not None and declared.digest != canary.plan_digest:
        return "Git declares another plan"
    if action.current is None or action.current.digest != canary.base_digest:
        return "the release that it is compared with has changed"
    return None


def _why_without_share(
    tx: Tx, context: CanaryContext, canary: Canary, action: Action | None, closed: Sequence[Blocked]
) -> str | None:
    """Return why a canary gets no runs now: it is held or rejected, or its version fails verification."""
    for item in closed:
        if HELD_BY.get(item.gate) == item.reason:
            return item.message
    if action is None:
        return "Rejected by verification"
    try:
        bundle, release = releases.bundle(tx, canary.digest), registry.candidate_release(canary)
        registry.check_served(bundle, release, context.environment, context.trust.root, context.trust.hmac_key)
    except KneoError as error:
        return error.code
    return None


def _advance(tx: Tx, canary: Canary) -> None:
    """Begin the next step; the last one is the promotion."""
    step, shares = canary.step + 1, plan_of(canary).shares
    after = replace(canary, step=step, share=shares[step - 1], counts=True, step_at=tx.at, actor=CONTROLLER)
    record_event(tx, "canary.advanced", after)
    if step == len(shares):
        end(tx, after, CanaryState.PASSED, "passed")


def _begin(tx: Tx, context: CanaryContext, action: Promote, verdict: Blocked) -> bool:
    """Begin a canary where only its gate is closed, and everything that its version depends on is released."""
    steps = verdict.begins
    if steps is None or verdict.also or action.current is None:
        return False
    served = {release.digest for release in registry.list_served(tx, context.environment.name)}
    if any(need.digest not in served for need in action.bundle.depends_on):
        return False
    releases.insert_bundles(tx, [action.bundle.record])
    share = steps.shares[0]
    is_lost = context.rebuilding and share < 1
    canary = Canary(
        id=new_id("can", tx.now),
        environment=context.environment.name,
        bundle=action.bundle.name,
        version=action.bundle.version,
        digest=action.bundle.digest,
        base_digest=action.current.digest,
        revision=context.revision,
        plan=steps.content,
        plan_digest=steps.digest,
        policy_digest=context.environment.policy_digest,
        approvals=verdict.approvals,
        salt=secrets.token_hex(SALT_BYTES),
        step=1,
        share=0.0 if is_lost else share,
        counts=True,
        state=CanaryState.PAUSED if is_lost else CanaryState.RUNNING,
        reason=REBUILT if is_lost else "",
        actor=CONTROLLER,
        blocks=False,
        promotes=False,
        began_at=tx.at,
        step_at=tx.at,
    )
    record_event(tx, "canary.began", canary)
    if share == 1:
        end(tx, canary, CanaryState.PASSED, "passed")
    return True
