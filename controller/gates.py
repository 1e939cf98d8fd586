"""What must hold before a planned change happens. Pure; all evidence is handed in.

Gates are asked in order and the first that does not agree speaks for all. None of them can say yes for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.plan import Action, Plan, Retire, name_of
from kneo.clock import isoformat, parse_time
from kneo.spec.environment import Environment
from kneo.spec.windows import next_opening, windows_open
from kneo.state.release import Release


@dataclass(frozen=True)
class Allowed:
    """Nothing stands in the way."""


@dataclass(frozen=True)
class Waits:
    """A gate is not open yet."""

    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()


Verdict = Allowed | Waits


@dataclass(frozen=True)
class Evidence:
    """What gates may look at.

    Args:
        now: The one time of this pass.
        served: What every environment serves, by environment and bundle name.
        approvals: People whose approval of a bundle digest for this environment and policy was verified.
    """

    now: datetime
    served: Mapping[str, Mapping[str, Release]]
    approvals: Mapping[str, frozenset[str]]


Gate = Callable[[Action, Plan, Environment, Evidence], Verdict]


def judge(
    plan: Plan, environment: Environment, evidence: Evidence, *, refused: str | None = None
) -> tuple[tuple[Action, Verdict], ...]:
    """Ask every gate about every action.

    Args:
        plan: What would change.
        environment: Under which rules.
        evidence: What the gates may look at.
        refused: Why a release that this commit names never became an action, if there is one.
    """
    judged = tuple((action, _first_refusal(action, plan, environment, evidence)) for action in plan.actions)
    blocked = refused or next((verdict.message for _, verdict in judged if isinstance(verdict, Waits)), None)
    if environment.spec.atomic and blocked is not None:
        held = Waits("atomic", "AtomicBlocked", f"All changes of this environment wait together: {blocked}")
        return tuple((action, held if isinstance(verdict, Allowed) else verdict) for action, verdict in judged)
    return judged


def _first_refusal(action: Action, plan: Plan, environment: Environment, evidence: Evidence) -> Verdict:
    for gate in GATES:
        verdict = gate(action, plan, environment, evidence)
        if isinstance(verdict, Waits):
            return verdict
    return Allowed()


def not_suspended(_action: Action, _plan: Plan, environment: Environment, _evidence: Evidence) -> Verdict:
    if environment.spec.suspend:
        return Waits("suspend", "Suspended", f"environments/{environment.name}.yaml says suspend: true.")
    return Allowed()


def within_window(_action: Action, _plan: Plan, environment: Environment, evidence: Evidence) -> Verdict:
    if windows_open(environment.windows, evidence.now):
        return Allowed()
    opens = next_opening(environment.windows, evidence.now)
    when = f"until {isoformat(opens)}" if opens else "by any window"
    return Waits("windows", "WindowClosed", f"Changes are not allowed {when}.")


def no_mass_prune(action: Action, plan: Plan, environment: Environment, evidence: Evidence) -> Verdict:
    """Guard against an emptied file: more than the allowed share disappearing at once waits for a person."""
    if not isinstance(action, Retire):
        return Allowed()
    retired = sum(isinstance(other, Retire) for other in plan.actions)
    served = len(evidence.served.get(plan.environment, {}))
    limit = environment.spec.prune.max_percent
    if retired * 100 <= limit * served:
        return Allowed()
    message = f"{retired} of {served} releases would disappear at once; more than {limit} % needs an approval."
    return Waits("prune", "MassPruneBlocked", message)


def from_environment(action: Action, _plan: Plan, environment: Environment, evidence: Evidence) -> Verdict:
    """Only what the previous environment serves, long enough, may come here."""
    origin = environment.spec.promote_from
    if origin is None or isinstance(action, Retire):
        return Allowed()
    release = evidence.served.get(origin, {}).get(action.bundle.name)
    if release is None or release.digest != action.bundle.digest:
        message = f"{origin} does not serve {action.bundle.digest} of {action.bundle.name}."
        return Waits("promoteFrom", "DependencyNotReady", message)
    soak = environment.spec.soak
    if evidence.now < parse_time(release.since) + soak:
        until = (parse_time(release.since) + soak).isoformat()
        return Waits("soak", "AwaitingSoak", f"{origin} has to serve it until {until}.")
    return Allowed()


def depends_on(action: Action, plan: Plan, _environment: Environment, evidence: Evidence) -> Verdict:
    if isinstance(action, Retire):
        return Allowed()
    served = {release.digest for release in evidence.served.get(plan.environment, {}).values()}
    statement = action.bundle.statement
    missing = [need for need in (statement.predicate.depends_on if statement else ()) if need.digest not in served]
    if not missing:
        return Allowed()
    message = f"It depends on {missing[0].name} ({missing[0].digest}), which is not served here."
    return Waits("dependsOn", "DependencyNotReady", message)


def approved(action: Action, _plan: Plan, environment: Environment, evidence: Evidence) -> Verdict:
    rule = environment.spec.approvals
    if rule is None or rule.required == 0 or isinstance(action, Retire):
        return Allowed()
    people = environment.spec.people
    eligible = {name for name, person in people.items() if set(person.roles) & set(rule.roles)}
    if "bundle_signer" in rule.exclude:
        eligible -= {signer.principal for signer in action.bundle.signers}
    have = evidence.approvals.get(action.bundle.digest, frozenset()) & eligible
    if len(have) >= rule.required:
        return Allowed()
    message = f"{len(have)} of {rule.required} approvals for {name_of(action)}."
    return Waits("approvals", "AwaitingApproval", message, tuple(sorted(eligible - have)))


GATES: Sequence[Gate] = (not_suspended, no_mass_prune, from_environment, depends_on, within_window, approved)
