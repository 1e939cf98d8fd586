"""Whether planned changes may happen. Pure.

Gates are asked in order; the first that does not agree speaks for all, and names the others that do not. Where a commit changes an environment's rules,
every gate is asked under the rules before and after, and both must agree: so nothing a commit loosens can let something
through that the same commit brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.stages.gates import GATES, Allowed, Blocked, Evidence, Gate, GateVerdict, Rules
from controller.stages.plan import Action, ReleasePlan, Retire, name_of
from kneo.records.release import Release
from kneo.spec.environment import Environment


def rules_of(environment: Environment, before: Environment | None) -> tuple[Rules, ...]:
    """Put together what a commit is judged under: its own file, and the one in force before it where that differs."""
    if before is None or before.policy_digest == environment.policy_digest:
        return (Rules(environment, frozenset({environment.policy_digest})),)
    both = frozenset({environment.policy_digest, before.policy_digest})
    return (Rules(environment, frozenset({environment.policy_digest})), Rules(before, both))


def evaluate_gates(
    plan: ReleasePlan,
    rules: Sequence[Rules],
    evidence: Evidence,
    *,
    refused: str | None = None,
    gates: Sequence[Gate] | None = None,
) -> tuple[tuple[Action, GateVerdict], ...]:
    """Ask every gate about every action, under every set of rules.

    Args:
        plan: What would change.
        rules: Under which rules; none refuses everything.
        evidence: What the gates may look at.
        refused: Why a release that this commit names never became an action, if there is one.
        gates: Which gates to ask; all of them unless a person takes responsibility for less.
    """
    asked = GATES if gates is None else gates
    judged = {name_of(action): (action, _judge_one(action, plan, rules, evidence, asked)) for action in plan.actions}
    _hold_back_dependents(plan, judged, evidence)
    verdicts = tuple(judged.values())
    blocked = refused or next((verdict.message for _, verdict in verdicts if isinstance(verdict, Blocked)), None)
    if any(item.environment.spec.atomic for item in rules) and blocked is not None:
        held = Blocked("atomic", "AtomicBlocked", f"All changes of this environment wait together: {blocked}")
        return tuple((action, held if isinstance(verdict, Allowed) else verdict) for action, verdict in verdicts)
    return verdicts


def _judge_one(
    action: Action, plan: ReleasePlan, rules: Sequence[Rules], evidence: Evidence, gates: Sequence[Gate]
) -> GateVerdict:
    if not rules:
        return Blocked("policy", "PolicyInvalid", "There are no rules to judge this under.")
    approvals: list[str] = []
    closed: dict[str, Blocked] = {}
    for number, item in enumerate(rules):
        for gate in gates:
            verdict = gate(action, plan, item, evidence)
            if isinstance(verdict, Blocked):
                closed.setdefault(verdict.gate, verdict if number == 0 else _under_earlier_rules(verdict))
            else:
                approvals += verdict.approvals
    if closed:
        first, *others = closed.values()
        return replace(first, also=tuple(others))
    return Allowed(tuple(dict.fromkeys(approvals)))


def _under_earlier_rules(verdict: Blocked) -> Blocked:
    said = f"{verdict.message} The rules that ask for this were changed; a later commit is judged without them."
    return replace(verdict, message=said)


# ---- dependencies -----------------------------------------------------------------------------------------------


def _hold_back_dependents(plan: ReleasePlan, judged: dict[str, tuple[Action, GateVerdict]], evidence: Evidence) -> None:
    """Let nothing happen that leaves something served without what it depends on.

    What depends on each other may come together; so the allowed changes are looked at as a whole, and the ones that do
    not fit are taken out until the rest does.
    """
    served = evidence.served.get(plan.environment, {})
    while True:
        allowed = {name: action for name, (action, verdict) in judged.items() if isinstance(verdict, Allowed)}
        after = _served_after(served, allowed)
        found = _unmet(plan, allowed, served, after)
        if found is None:
            return
        name, message = found
        judged[name] = (judged[name][0], Blocked("dependsOn", "DependencyNotReady", message))


def _served_after(served: Mapping[str, Release], allowed: Mapping[str, Action]) -> frozenset[str]:
    digests = {name: release.digest for name, release in served.items()}
    for name, action in allowed.items():
        if isinstance(action, Retire):
            digests.pop(name, None)
        else:
            digests[name] = action.bundle.digest
    return frozenset(digests.values())


def _unmet(
    plan: ReleasePlan, allowed: Mapping[str, Action], served: Mapping[str, Release], after: frozenset[str]
) -> tuple[str, str] | None:
    for name, action in allowed.items():
        if isinstance(action, Retire):
            continue
        missing = [need for need in action.bundle.depends_on if need.digest not in after]
        if missing:
            return name, f"It depends on {missing[0].name} ({missing[0].digest}), which is not served here."
    leaving = {release.digest: name for name, release in served.items() if release.digest not in after}
    for standing in plan.standing.values():
        broken = [need for need in standing.needs if need in leaving]
        if broken:
            return leaving[broken[0]], f"{standing.name} {standing.version} depends on what would be replaced by this."
    return None
