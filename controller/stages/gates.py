"""What must hold before a planned change happens: each gate on its own. Pure; all evidence is handed in.

None of them can say yes for another; ``judge`` asks them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller.approvals import ApprovalVote, ApprovalVotes
from controller.stages.plan import Action, ReleasePlan, Retire, name_of, version_of
from controller.stages.verify import Candidate
from kneo.clock import isoformat, parse_time
from kneo.digest import Digest
from kneo.names import person_key
from kneo.records.release import Hold, Release, Suspension
from kneo.spec.models.environment import Approvals, Environment
from kneo.spec.windows import next_opening, windows_open
from kneo.trust.root import ROOT_ROLE
from kneo.trust.statement import DecisionSubject, prune_subject


@dataclass(frozen=True)
class Allowed:
    """Nothing stands in the way.

    Args:
        approvals: Ids of the decisions that this rests on.
    """

    approvals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blocked:
    """A gate is not open yet.

    Args:
        gate: Which.
        reason: Why, as a word.
        message: Why, for people.
        who: Who could open it.
        subject: What an approval that opens it has to be about.
        also: The other gates that are closed.
    """

    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()
    subject: str | None = None
    also: tuple[Blocked, ...] = ()


GateVerdict = Allowed | Blocked


@dataclass(frozen=True, kw_only=True)
class CommitTimes:
    """What the dates of commits say while a registry is rebuilt from them: they are believed only where they refuse.

    Args:
        since: Since when an environment has served a bundle, by environment and digest; else since this commit.
        at: When the commit that is replayed came.
        until: When the commit that is replayed was followed by the next one.
    """

    since: Mapping[tuple[str, str], datetime]
    at: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What gates may look at.

    Args:
        now: The one time of this pass.
        served: What every environment serves, by environment and bundle name.
        votes: Decisions of people that were verified, by the digest of what they are about.
        members: Who could sign for each role of the trust root.
        holds: What is held in this environment, by bundle name.
        suspension: Whether somebody suspended this environment.
        failures: When a run of a bundle last failed in the environment that this one promotes from, by digest.
        requester: Who asked for these changes by hand; nobody for what a commit asks for.
        root_expires: From when on the trust root admits nothing; None for never.
    """

    now: datetime
    served: Mapping[str, Mapping[str, Release]]
    votes: ApprovalVotes = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    holds: Mapping[str, Hold] = field(default_factory=dict)
    suspension: Suspension | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    requester: str | None = None
    served_before: frozenset[str] = frozenset()
    """Digests of bundles that this environment has served at any time."""

    dated: CommitTimes | None = None
    """Set while a registry is rebuilt from Git."""

    root_expires: datetime | None = None


@dataclass(frozen=True)
class Rules:
    """An environment file that changes are judged under.

    Args:
        environment: The file.
        digests: The policy digests an approval may name: this file's, and that of the file that follows it.
    """

    environment: Environment
    digests: frozenset[str]


Gate = Callable[[Action, ReleasePlan, Rules, Evidence], GateVerdict]


def trusted_root(action: Action, _plan: ReleasePlan, _rules: Rules, evidence: Evidence) -> GateVerdict:
    """An expired trust root admits nothing: not even what was signed and accepted elsewhere before it expired."""
    if isinstance(action, Retire) or evidence.root_expires is None or evidence.now < evidence.root_expires:
        return Allowed()
    message = f"The trust root expired on {isoformat(evidence.root_expires)}; nothing is released until it is renewed."
    return Blocked("trust", "Expired", message, tuple(sorted(evidence.members.get(ROOT_ROLE, ()))))


def not_suspended(_action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    environment = rules.environment
    if environment.spec.suspend:
        return Blocked("suspend", "Suspended", f"environments/{environment.name}.yaml says suspend: true.")
    found = evidence.suspension
    if found is not None:
        until = f" until {found.until}" if found.until else ""
        return Blocked("suspend", "Suspended", f"{found.actor} suspended it{until}: {found.reason}", (found.actor,))
    return Allowed()


def not_held(action: Action, _plan: ReleasePlan, _rules: Rules, evidence: Evidence) -> GateVerdict:
    hold = evidence.holds.get(name_of(action))
    if hold is None:
        return Allowed()
    until = f" until {hold.until}" if hold.until else ""
    return Blocked("hold", "Held", f"{hold.actor} holds it as it is{until}: {hold.reason}", (hold.actor,))


def no_mass_prune(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Guard against an emptied file: more than the allowed share disappearing at once waits for a person."""
    if not isinstance(action, Retire):
        return Allowed()
    retired = [other.current for other in plan.actions if isinstance(other, Retire)]
    served = len(evidence.served.get(plan.environment, {}))
    limit = rules.environment.spec.prune.max_percent
    ends = rules.environment.spec.retired
    if len(retired) * 100 <= limit * served and not ends:
        return Allowed()
    about = prune_subject(plan.environment, plan.revision, ((item.bundle, item.digest) for item in retired))
    rule = rules.environment.spec.approvals or Approvals()
    # Whatever the rule says about promotions, an emptied environment waits for somebody.
    rule = rule.model_copy(update={"required": max(1, rule.required)})
    message = f"{len(retired)} of {served} releases would disappear at once; more than {limit} % needs an approval."
    if ends:
        message = f"{plan.environment} is retired: removing its {served} releases needs an approval."
    verdict = count_approvals(about.digest, about.name, rule, rules, evidence, "this removal", about=about)
    if isinstance(verdict, Blocked):
        return replace(verdict, gate="prune", reason="MassPruneBlocked", message=message)
    return verdict


def from_environment(action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Only what the previous environment serves, long enough and without failure, may come here for the first time."""
    origin = rules.environment.spec.promote_from
    if origin is None or isinstance(action, Retire) or action.bundle.digest in evidence.served_before:
        return Allowed()
    release = evidence.served.get(origin, {}).get(action.bundle.name)
    if release is None or release.digest != action.bundle.digest:
        message = f"{origin} does not serve {action.bundle.digest} of {action.bundle.name}."
        return Blocked("promoteFrom", "DependencyNotReady", message)
    soak = rules.environment.spec.soak
    failed = evidence.failures.get(release.digest)
    began = max(release.since, failed) if failed is not None else release.since
    until, now = parse_time(began) + soak, evidence.now
    if evidence.dated is not None:
        until, now = _dated_since(evidence.dated, origin, action.bundle, evidence.now) + soak, evidence.dated.until
    if soak and now < until:
        since = f"; a run of it failed there at {failed}" if failed is not None and failed == began else ""
        message = f"{origin} has to serve it without failure until {isoformat(until)}{since}."
        return Blocked("soak", "AwaitingSoak", message)
    return Allowed()


def _dated_since(dated: CommitTimes, origin: str, bundle: Candidate, now: datetime) -> datetime:
    """Say since when an environment has served a bundle by the dates of commits, never before it was signed."""
    since = dated.since.get((origin, bundle.digest), dated.at)
    return max(since, bundle.issued_at) if bundle.issued_at is not None else now


def within_window(_action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    windows = rules.environment.windows
    if windows_open(windows, evidence.now):
        return Allowed()
    opens = next_opening(windows, evidence.now)
    when = f"until {isoformat(opens)}" if opens else "by any window"
    return Blocked("windows", "WindowClosed", f"Changes are not allowed {when}.")


def approved(action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Ask for enough people of the right roles who have no part in what they approve."""
    rule = rules.environment.spec.approvals
    if rule is None or rule.required == 0 or isinstance(action, Retire):
        return Allowed()
    involved = frozenset() if rules.environment.spec.allow_self else _involved(action, rule, evidence)
    what = f"{name_of(action)} {version_of(action)}"
    bundle = action.bundle
    return count_approvals(bundle.digest, bundle.name, rule, rules, evidence, what, involved=involved)


def _involved(action: Action, rule: Approvals, evidence: Evidence) -> frozenset[str]:
    """Name the people whose approval does not count, because of their part in the change."""
    assert not isinstance(action, Retire)
    bundle, people = action.bundle, set[str]()
    if "bundle_signer" in rule.exclude:
        people |= set(bundle.record.signers)
    if "author" in rule.exclude and bundle.author is not None:
        people.add(bundle.author)
    if "requester" in rule.exclude and evidence.requester is not None:
        people.add(evidence.requester)
    return frozenset(map(person_key, people))


def count_approvals(
    subject: Digest,
    name: str,
    rule: Approvals,
    rules: Rules,
    evidence: Evidence,
    what: str,
    *,
    involved: Collection[str] = (),
    about: DecisionSubject | None = None,
) -> GateVerdict:
    """Count the decisions of people about one thing under one rule.

    Args:
        subject: What they decided about.
        name: What it has to be called in their decisions, so that one about a bundle is none about rules.
        rule: How many approvals of whom it takes.
        rules: The environment file with the people, and the policy digests that an approval may name.
        evidence: What the gates may look at.
        what: The subject in words.
        involved: People whose decision does not count, because of their part in the change.
        about: The subject in full, where it is no bundle and no set of rules.
    """
    heard = [
        vote
        for vote in evidence.votes.get(subject, ())
        if (vote.name, vote.about) == (name, about)
        and person_key(vote.principal) not in involved
        and _may_decide(vote, rule, rules)
    ]
    against = _rejections(heard)
    if against:
        why = f" Reason: {against[0].reason}" if against[0].reason else ""
        message = f"{against[0].principal} rejected {what}.{why}"
        return Blocked("approvals", "Rejected", message, (against[0].principal,), subject)
    counting: dict[str, ApprovalVote] = {}
    for vote in heard:
        known = counting.get(person_key(vote.principal))
        if _counts_now(vote, rule, rules, evidence) and (known is None or known.order <= vote.order):
            counting[person_key(vote.principal)] = vote
    if len(counting) >= rule.required:
        return Allowed(tuple(sorted(vote.id for vote in counting.values() if vote.id)))
    message = f"{len(counting)} of {rule.required} approvals for {what}."
    could = {name for name in _eligible(rule, rules, evidence) if person_key(name) not in {*involved, *counting}}
    return Blocked("approvals", "AwaitingApproval", message, tuple(sorted(could)), subject)


def _rejections(heard: Sequence[ApprovalVote]) -> list[ApprovalVote]:
    """Find the rejections that stand: those whose makers signed no approval of the same thing later.

    Under whichever rules they were made, and however long ago: an approval lapses, a rejection has to be taken back.
    """
    latest: dict[str, ApprovalVote] = {}
    for vote in heard:
        known = latest.get(person_key(vote.principal))
        if known is None or known.order <= vote.order:
            latest[person_key(vote.principal)] = vote
    return [vote for vote in latest.values() if not vote.approves]


def _may_decide(vote: ApprovalVote, rule: Approvals, rules: Rules) -> bool:
    if rule.signed and not vote.signed:
        return False
    return bool((vote.roles | _roles_of(vote.principal, rules.environment)) & set(rule.roles))


def _counts_now(vote: ApprovalVote, rule: Approvals, rules: Rules, evidence: Evidence) -> bool:
    """Say whether an approval is one of these rules, and not too old."""
    return vote.approves and vote.policy_digest in rules.digests and evidence.now < vote.first_seen + rule.expires


def _roles_of(name: str, environment: Environment) -> frozenset[str]:
    people = environment.spec.people.items()
    return frozenset(role for known, person in people if person_key(known) == person_key(name) for role in person.roles)


def _eligible(rule: Approvals, rules: Rules, evidence: Evidence) -> frozenset[str]:
    people = rules.environment.spec.people
    listed = {name for name, person in people.items() if set(person.roles) & set(rule.roles)}
    keyed = {name for role in rule.roles for name in evidence.members.get(role, ())}
    return frozenset(listed | keyed)


def evaluate_own_policy(
    after: Environment, before: Environment | None, easier: Sequence[str], evidence: Evidence
) -> GateVerdict:
    """Decide whether a new environment file may come into force, by the rules of the one that is.

    Args:
        after: The file that a commit brings.
        before: The file in force; None for a new environment.
        easier: What the new file would make easier.
        evidence: What the gates may look at.
    """
    if before is None or not easier:
        return Allowed()
    rule = before.spec.approvals
    if rule is None or rule.required == 0:
        return Allowed()
    rules = Rules(before, frozenset({after.policy_digest}))
    verdict = count_approvals(after.policy_digest, after.file, rule, rules, evidence, "a change of the rules")
    if isinstance(verdict, Blocked):
        said = f"{verdict.message} This change weakens protection rules: {'; '.join(easier)}."
        return replace(verdict, gate="policy", message=said)
    return verdict


GATES: Sequence[Gate] = (
    trusted_root,
    not_suspended,
    not_held,
    no_mass_prune,
    from_environment,
    within_window,
    approved,
)

ROLLBACK_GATES: Sequence[Gate] = (not_suspended, approved)
"""Gates of a rollback that a person asks for: it goes back to what was served here, at any hour, without a soak."""


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
