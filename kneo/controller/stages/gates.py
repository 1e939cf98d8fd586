"""The gates of a planned change, and their evaluation. Pure; all evidence is an argument.

Every gate has to allow a change. The first blocked gate gives reason and message, and lists the other blocked ones. Where a
commit changes an environment's rules, every gate is evaluated under the rules before and after the commit, and both have to
allow the change: a commit cannot loosen the rules for its own releases. Where people approved the change of the rules, this
ends with the reconciliation that brings them into force.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain

from kneo.clock import isoformat, parse_time
from kneo.controller.stages.approvals import ApprovalVote, ApprovalVotes, may_decide
from kneo.controller.stages.attestations import EvidenceCase, StatedFacts, StatedResult, Unmet, satisfy
from kneo.controller.stages.plan import Action, Promote, ReleasePlan, Retire, Rollback, name_of, version_of
from kneo.controller.stages.rejections import (
    AcceptedFiles,
    Involved,
    could_decide,
    ended_rejections,
    latest_rejections,
    nobody_involved,
)
from kneo.controller.stages.verify import Candidate
from kneo.digest import Digest
from kneo.names import person_key
from kneo.records.canary import GATE, Canary, CanaryState
from kneo.records.release import APPROVAL_EXPIRED, RULES_CHANGED, Hold, OutdatedApproval, Release, Suspension
from kneo.spec.diff.weakening import weakenings
from kneo.spec.models.canary import CanaryPlan
from kneo.spec.models.environment import Approvals, Environment
from kneo.spec.policy import next_opening, windows_open
from kneo.trust.root import ROOT_ROLE
from kneo.trust.statement import DecisionSubject, canary_subject, prune_subject


@dataclass(frozen=True)
class Allowed:
    """An allowed change.

    Args:
        approvals: Ids of the approvals that allow it.
        attestations: Ids of the attestations that allow it.
        canary: The id of the canary that allows it.
    """

    approvals: tuple[str, ...] = ()
    attestations: tuple[str, ...] = ()
    canary: str | None = None


@dataclass(frozen=True)
class Blocked:
    """A change that a gate blocks.

    Args:
        gate: Name of the gate.
        reason: Reason of the condition.
        message: Message for people.
        who: People who can unblock it.
        subject: Subject of an approval that unblocks it.
        also: The other blocked gates.
        outdated: Approvals that do not count any more.
        approvals: Ids of the approvals that the open gates counted, where only the gate of canaries is closed.
        begins: The plan of the canary that can begin.
    """

    gate: str
    reason: str
    message: str
    who: tuple[str, ...] = ()
    subject: str | None = None
    also: tuple[Blocked, ...] = ()
    outdated: tuple[OutdatedApproval, ...] = ()
    approvals: tuple[str, ...] = ()
    begins: CanaryPlan | None = None


GateVerdict = Allowed | Blocked


@dataclass(frozen=True, kw_only=True)
class CommitTimes:
    """Times from commit dates while a registry is rebuilt from Git. They can block a change, never allow one.

    Args:
        since: Start of each release, by environment and digest; for others the replayed commit.
        at: Time of the replayed commit.
        until: Time of the commit after it.
    """

    since: Mapping[tuple[str, str], datetime]
    at: datetime
    until: datetime


@dataclass(frozen=True)
class KnownCanary:
    """The newest canary of a bundle.

    Args:
        canary: The canary.
        votes: The decisions of people that counted when it began, by the digest of their subject.
    """

    canary: Canary
    votes: ApprovalVotes = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence for gates.

    Args:
        now: The time of this reconciliation.
        served: Releases by environment and bundle name.
        votes: Verified decisions of people, by the digest of their subject.
        elsewhere: Those about files of other environments, which people of this one decide too; only where its rules change.
        files: The files that rejections name, by policy digest.
        members: People with a valid key, by role of the trust root.
        holds: Holds in this environment, by bundle name.
        suspension: Suspension of this environment.
        failures: Time of the last failed run in the environment that this one promotes from, by bundle digest.
        requester: The person who requested a rollback; None for changes of a commit.
        root_expires: Expiry of the trust root; None for never.
        served_before: Digests of the bundles that this environment has ever released.
        commit_times: Commit dates, while a registry is rebuilt from Git.
        facts: Attestations about the bundles of this environment.
        canaries: The newest canary of each bundle that may be released, by its digest.
    """

    now: datetime
    served: Mapping[str, Mapping[str, Release]]
    votes: ApprovalVotes = field(default_factory=dict)
    elsewhere: ApprovalVotes = field(default_factory=dict)
    files: AcceptedFiles = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    holds: Mapping[str, Hold] = field(default_factory=dict)
    suspension: Suspension | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    requester: str | None = None
    served_before: frozenset[str] = frozenset()
    commit_times: CommitTimes | None = None
    root_expires: datetime | None = None
    facts: StatedFacts = field(default_factory=StatedFacts)
    canaries: Mapping[str, KnownCanary] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """The rules of an environment file.

    Args:
        environment: The file.
        digests: Policy digests that an approval may name: this file's, and that of the file after it.
        until: For the rules from before a commit, when they cease to apply; None for those in the commit.
    """

    environment: Environment
    digests: frozenset[str]
    until: str | None = None


Gate = Callable[[Action, ReleasePlan, Rules, Evidence], GateVerdict]


def trusted_root(action: Action, _plan: ReleasePlan, _rules: Rules, evidence: Evidence) -> GateVerdict:
    """Block every release under an expired trust root, also of bundles that were accepted before it expired."""
    if isinstance(action, Retire) or evidence.root_expires is None or evidence.now < evidence.root_expires:
        return Allowed()
    message = f"The trust root expired on {isoformat(evidence.root_expires)}; releases are blocked until it is renewed."
    return Blocked("trust", "Expired", message, tuple(sorted(evidence.members.get(ROOT_ROLE, ()))))


def not_suspended(_action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    environment = rules.environment
    if environment.spec.suspend:
        return Blocked("suspend", "Suspended", f"environments/{environment.name}.yaml sets suspend: true.")
    suspension = evidence.suspension
    if suspension is not None:
        until = f" until {suspension.until}" if suspension.until else ""
        return Blocked(
            "suspend", "Suspended", f"suspended by {suspension.actor}{until}: {suspension.reason}", (suspension.actor,)
        )
    return Allowed()


def not_held(action: Action, _plan: ReleasePlan, _rules: Rules, evidence: Evidence) -> GateVerdict:
    hold = evidence.holds.get(name_of(action))
    if hold is None:
        return Allowed()
    until = f" until {hold.until}" if hold.until else ""
    return Blocked("hold", "Held", f"held by {hold.actor}{until}: {hold.reason}", (hold.actor,))


def no_mass_prune(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Require an approval for the removal of more releases than the file allows at once."""
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
    # A mass removal needs an approval, also where promotions need none.
    rule = rule.model_copy(update={"required": max(1, rule.required)})
    message = (
        f"This commit removes {len(retired)} of {served} releases; removing more than {limit} % needs an approval."
    )
    if ends:
        message = f"{plan.environment} is retired: removing its {served} releases needs an approval."
    verdict = count_approvals(about.digest, about.name, rule, rules, evidence, "this removal", about=about)
    if isinstance(verdict, Blocked):
        return replace(verdict, gate="prune", reason="MassPruneBlocked", message=message)
    return verdict


def from_environment(action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Require that the previous environment has released a new bundle, long enough and without a failed run."""
    origin = rules.environment.spec.promote_from
    if origin is None or isinstance(action, Retire) or action.bundle.digest in evidence.served_before:
        return Allowed()
    release = evidence.served.get(origin, {}).get(action.bundle.name)
    if release is None or release.digest != action.bundle.digest:
        message = f"{action.bundle.name} {action.bundle.version} ({action.bundle.digest}) is not released to {origin}."
        return Blocked("promoteFrom", "DependencyNotReady", message)
    soak = rules.environment.spec.soak
    failed = evidence.failures.get(release.digest)
    began = max(release.since, failed) if failed is not None else release.since
    until, now = parse_time(began) + soak, evidence.now
    if evidence.commit_times is not None:
        until, now = (
            _released_since(evidence.commit_times, origin, action.bundle, evidence.now) + soak,
            evidence.commit_times.until,
        )
    if soak and now < until:
        since = f"; a run failed there at {failed}" if failed is not None and failed == began else ""
        message = f"It has to run in {origin} without failure until {isoformat(until)}{since}."
        return Blocked("soak", "AwaitingSoak", message)
    return Allowed()


def _released_since(times: CommitTimes, origin: str, bundle: Candidate, now: datetime) -> datetime:
    """Return the start of a bundle's release by commit dates, never before the bundle was signed."""
    since = times.since.get((origin, bundle.digest), times.at)
    return max(since, bundle.issued_at) if bundle.issued_at is not None else now


def evidence_case(action: Action, plan: ReleasePlan, evidence: Evidence) -> EvidenceCase | None:
    """Return the bundle of an action and what its evidence is judged by; None where it needs none."""
    if isinstance(action, Retire) or action.bundle.digest in evidence.served_before:
        return None
    current = evidence.served.get(plan.environment, {}).get(action.bundle.name)
    return EvidenceCase(
        environment=plan.environment,
        bundle=action.bundle,
        current=current.digest if current is not None else None,
        facts=evidence.facts,
        now=evidence.now,
        replayed_at=evidence.commit_times.at if evidence.commit_times is not None else None,
    )


def evidenced(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Require the facts about a new bundle that an environment's evidence rules name."""
    required, case = rules.environment.spec.evidence, evidence_case(action, plan, evidence)
    if not required or case is None:
        return Allowed()
    results = [satisfy(rule, case) for rule in required]
    unmet = [item for item in results if isinstance(item, Unmet)]
    if not unmet:
        return Allowed(attestations=tuple(chain.from_iterable(item for item in results if not isinstance(item, Unmet))))
    message = " ".join(item.message for item in unmet)
    who = {name for item in unmet for name in evidence.members.get(item.rule.signers.role, ())}
    return Blocked("evidence", unmet[0].reason, message, tuple(sorted(who)))


def within_window(_action: Action, _plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    windows = rules.environment.windows
    if windows_open(windows, evidence.now):
        return Allowed()
    opens = next_opening(windows, evidence.now)
    when = f"until {isoformat(opens)}" if opens else "in any window"
    return Blocked("windows", "WindowClosed", f"Changes are not allowed {when}.")


def approved(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Require enough approvals by people of the required roles who have no part in the change.

    An approval of a canary covers all of its steps, and counts until it ends; so does an approval of its bundle.
    """
    rule = rules.environment.spec.approvals
    if rule is None or rule.required == 0 or isinstance(action, Retire):
        return Allowed()
    verdict = _count_about(action, plan, rule, rules, evidence)
    known = evidence.canaries.get(action.bundle.digest)
    if not isinstance(verdict, Blocked) or verdict.reason != "AwaitingApproval" or known is None:
        return verdict
    if not (known.canary.is_live or known.canary.state is PASSED) or planned_subject(action, plan, evidence) is None:
        return verdict
    as_it_began = replace(evidence, now=parse_time(known.canary.began_at), votes=_merged(known.votes, evidence.votes))
    earlier = _count_about(action, plan, rule, rules, as_it_began)
    return earlier if isinstance(earlier, Allowed) else verdict


def _merged(*votes: ApprovalVotes) -> ApprovalVotes:
    subjects = {subject for each in votes for subject in each}
    return {subject: tuple(vote for each in votes for vote in each.get(subject, ())) for subject in subjects}


def _count_about(
    action: Promote | Rollback, plan: ReleasePlan, rule: Approvals, rules: Rules, evidence: Evidence
) -> GateVerdict:
    what, bundle = f"{name_of(action)} {version_of(action)}", action.bundle
    involved = partial(_involved, bundle, evidence.requester)
    about = planned_subject(action, plan, evidence)
    if about is None:
        return count_approvals(bundle.digest, bundle.name, rule, rules, evidence, what, involved=involved)
    steps = ", ".join(plan.canaries[bundle.name].steps)
    return count_approvals(
        about.digest,
        about.name,
        rule,
        rules,
        evidence,
        f"{what} by a canary of {steps}",
        involved=involved,
        about=about,
    )


def planned_subject(action: Action, plan: ReleasePlan, evidence: Evidence) -> DecisionSubject | None:
    """Return the subject of the approvals of a canary; None where a change needs those of its bundle."""
    steps = planned_canary(action, plan, evidence)
    if steps is None or isinstance(action, Retire):
        return None
    known = evidence.canaries.get(action.bundle.digest)
    if known is not None and known.canary.is_live and known.canary.promotes:
        return None
    return canary_subject(plan.environment, action.bundle.name, action.bundle.digest, steps.digest)


def planned_canary(action: Action, plan: ReleasePlan, evidence: Evidence) -> CanaryPlan | None:
    """Return the plan that a change has to follow. First releases, rollbacks and versions of before follow none."""
    if not isinstance(action, Promote) or action.current is None or action.bundle.digest in evidence.served_before:
        return None
    return plan.canaries.get(action.bundle.name)


# ---- canaries ---------------------------------------------------------------------------------------------------

PASSED = CanaryState.PASSED
CANARY, REBUILT, CANARY_PENDING, ROLLED_BACK = GATE, "Rebuilt", "CanaryPending", "CanaryRolledBack"

CONTROLLER_ROLE = "controller"
"""The role of the trust root whose keys state the results of canaries: that of the service key."""


def canary_passed(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Require that the canary of a new version has passed; and after one that was rolled back, that people say so again."""
    if isinstance(action, Retire) or action.bundle.digest in evidence.served_before:
        return Allowed()
    known = evidence.canaries.get(action.bundle.digest)
    canary, steps = known.canary if known is not None else None, planned_canary(action, plan, evidence)
    if canary is not None and canary.blocks and not _approved_since(action, plan, rules, evidence, canary.ended_at):
        reason = ROLLED_BACK if canary.state is CanaryState.ROLLED_BACK else "CanaryEnded"
        return _closed(action, plan, evidence, reason, canary.reason)
    if steps is None:
        return Allowed()
    if canary is None or canary.reason == REBUILT:
        stated = _stated_verdict(action, plan, steps, rules, evidence)
        if stated is not None:
            return stated
    return _verdict_of(action, plan, steps, evidence, canary)


def _verdict_of(
    action: Promote | Rollback, plan: ReleasePlan, steps: CanaryPlan, evidence: Evidence, canary: Canary | None
) -> GateVerdict:
    """Return the verdict of the present canary of a version; of an earlier plan none counts."""
    same = canary if canary is not None and canary.plan_digest == steps.digest else None
    if same is not None and (same.promotes or same.state is PASSED):
        return Allowed(canary=same.id)
    if same is None or not same.is_live:
        message = f"A canary begins when all other gates are open: {', '.join(steps.steps)} of new runs."
        return replace(_closed(action, plan, evidence, CANARY_PENDING, message), begins=steps)
    share = f"{same.share * 100:.4g} % of new runs since {same.step_at}"
    if same.state is CanaryState.PAUSED:
        return _closed(action, plan, evidence, "CanaryPaused", f"{share}; paused by {same.actor}: {same.reason}")
    following = f"; {same.figures.next}" if same.figures.next else ""
    return _closed(action, plan, evidence, "CanaryRunning", f"{share}{following}.")


def _stated_verdict(
    action: Promote | Rollback, plan: ReleasePlan, steps: CanaryPlan, rules: Rules, evidence: Evidence
) -> GateVerdict | None:
    """Return the verdict of a result in a commit, which a registry that was rebuilt from Git has instead of the canary."""
    stated = _stated(action, plan, steps, evidence)
    if stated is None:
        return None
    if stated.statement.predicate.result == "PASSED":
        return Allowed(attestations=(stated.id,))
    at = isoformat(stated.issued_at)
    if _approved_since(action, plan, rules, evidence, at):
        return None
    return _closed(action, plan, evidence, ROLLED_BACK, f"Its canary was rolled back at {at}.")


def _closed(action: Promote | Rollback, plan: ReleasePlan, evidence: Evidence, reason: str, message: str) -> Blocked:
    about = planned_subject(action, plan, evidence)
    return Blocked(CANARY, reason, message, subject=about.digest if about is not None else action.bundle.digest)


def _approved_since(
    action: Promote | Rollback, plan: ReleasePlan, rules: Rules, evidence: Evidence, since: str | None
) -> bool:
    """Return whether enough people approved a change after a time; where none have to, one approver has to."""
    if since is None:
        return False
    rule = rules.environment.spec.approvals or Approvals()
    later = {
        subject: tuple(vote for vote in votes if vote.first_seen > parse_time(since))
        for subject, votes in evidence.votes.items()
    }
    rule = rule.model_copy(update={"required": max(1, rule.required)})
    return isinstance(_count_about(action, plan, rule, rules, replace(evidence, votes=later)), Allowed)


def _stated(
    action: Promote | Rollback, plan: ReleasePlan, steps: CanaryPlan, evidence: Evidence
) -> StatedResult | None:
    """Return the newest result of a canary by this plan that the service key has signed and a commit has."""
    found = [
        item
        for item in evidence.facts.results.get(action.bundle.digest, ())
        if item.statement.facts.type == CANARY
        and (item.statement.bundle_name, item.statement.facts.environment) == (action.bundle.name, plan.environment)
        and item.statement.suite_digest == steps.digest
        and any(CONTROLLER_ROLE in roles for _, roles in item.signers)
    ]
    return max(found, key=lambda item: item.issued_at, default=None)


def not_rejected(action: Action, plan: ReleasePlan, rules: Rules, evidence: Evidence) -> GateVerdict:
    """Let a bundle pass that no approver rejected, also where its approvals do not count any more."""
    verdict = approved(action, plan, rules, evidence)
    return Allowed() if isinstance(verdict, Blocked) and verdict.reason == "AwaitingApproval" else verdict


def _involved(bundle: Candidate, requester: str | None, environment: Environment) -> frozenset[str]:
    """Return the people whose decision does not count under a file, because of their part in the change."""
    rule, people = environment.spec.approvals, set[str]()
    if rule is None or environment.spec.allow_self:
        return frozenset()
    if "bundle_signer" in rule.exclude:
        people |= set(bundle.record.signers)
    if "author" in rule.exclude and bundle.author is not None:
        people.add(bundle.author)
    if "requester" in rule.exclude and requester is not None:
        people.add(requester)
    return frozenset(map(person_key, people))


def count_approvals(
    subject: Digest,
    name: str,
    rule: Approvals,
    rules: Rules,
    evidence: Evidence,
    what: str,
    *,
    involved: Involved = nobody_involved,
    about: DecisionSubject | None = None,
) -> GateVerdict:
    """Count the decisions about one subject under one rule.

    Args:
        subject: Digest of the subject.
        name: The subject's name in decisions, so that a decision about a bundle is none about rules.
        rule: The required number of approvals, and the roles.
        rules: The environment file with the people, and the policy digests that an approval may name.
        evidence: The evidence for gates.
        what: The subject in words.
        involved: Returns the people whose decision does not count under a file.
        about: The subject in full, where it is neither a bundle nor a set of rules.
    """
    excluded = involved(rules.environment)
    every = [vote for vote in evidence.votes.get(subject, ()) if (vote.name, vote.about) == (name, about)]
    if about is not None and about.canary is not None:
        # A decision about a bundle is about its canary too.
        of_bundle = evidence.votes.get(about.canary.digest, ())
        every += [vote for vote in of_bundle if (vote.name, vote.about) == (about.canary.bundle, None)]
    votes = [
        vote
        for vote in every
        if person_key(vote.principal) not in excluded and may_decide(vote, rule, rules.environment)
    ]
    earlier = (vote for vote in every if could_decide(vote, subject, evidence.files, involved))
    against = latest_rejections([*votes, *earlier])
    if against:
        why = f" Reason: {against[0].reason}" if against[0].reason else ""
        message = f"{against[0].principal} rejected {what}.{why}"
        return Blocked("approvals", "Rejected", message, (against[0].principal,), subject)
    counting: dict[str, ApprovalVote] = {}
    for vote in votes:
        known = counting.get(person_key(vote.principal))
        if _counts_now(vote, rule, rules, evidence) and (known is None or known.order <= vote.order):
            counting[person_key(vote.principal)] = vote
    if len(counting) >= rule.required:
        return Allowed(tuple(sorted(vote.id for vote in counting.values() if vote.id)))
    outdated = tuple(_outdated(votes, counting, rule, rules, what))
    waiting = f"{what} is waiting for approval ({len(counting)} of {rule.required})."
    message = " ".join((waiting, *(item.message for item in outdated)))
    could = {name for name in _eligible(rule, rules, evidence) if person_key(name) not in {*excluded, *counting}}
    return Blocked("approvals", "AwaitingApproval", message, tuple(sorted(could)), subject, outdated=outdated)


def _outdated(
    votes: Sequence[ApprovalVote], counting: Collection[str], rule: Approvals, rules: Rules, what: str
) -> Iterator[OutdatedApproval]:
    """Yield the last approval of each approver whose approval does not count any more."""
    last = {person_key(vote.principal): vote for vote in sorted(votes, key=lambda vote: vote.order) if vote.approves}
    for person, vote in sorted(last.items()):
        if person in counting:
            continue
        reason = APPROVAL_EXPIRED if vote.policy_digest in rules.digests else RULES_CHANGED
        ended = f"and the approval expired on {isoformat(vote.first_seen + rule.expires)}"
        if reason == RULES_CHANGED:
            ended = f"under rules {vote.policy_digest.removeprefix('sha256:')[:8]}…, which have changed since"
        yield OutdatedApproval(
            principal=vote.principal,
            policy_digest=vote.policy_digest,
            at=isoformat(vote.first_seen),
            reason=reason,
            message=f"{vote.principal} approved {what} {ended}; it needs {vote.principal}'s approval again.",
        )


def _counts_now(vote: ApprovalVote, rule: Approvals, rules: Rules, evidence: Evidence) -> bool:
    """Return whether an approval was given under these rules and has not lapsed."""
    return vote.approves and vote.policy_digest in rules.digests and evidence.now < vote.first_seen + rule.expires


def _eligible(rule: Approvals, rules: Rules, evidence: Evidence) -> frozenset[str]:
    people = rules.environment.spec.people
    listed = {name for name, person in people.items() if set(person.roles) & set(rule.roles)}
    keyed = {name for role in rule.roles for name in evidence.members.get(role, ())}
    return frozenset(listed | keyed)


def evaluate_own_policy(
    after: Environment, before: Environment | None, easier: Sequence[str], evidence: Evidence
) -> GateVerdict:
    """Evaluate whether a new environment file may come into force, by the rules of the file in force.

    Args:
        after: The file in the commit.
        before: The file in force; None for a new environment.
        easier: Rules that the new file weakens.
        evidence: The evidence for gates.
    """
    if before is None or not easier:
        return Allowed()
    rule = before.spec.approvals
    if rule is None or rule.required == 0:
        return Allowed()
    rules = Rules(before, frozenset({after.policy_digest}))
    verdict = count_approvals(after.policy_digest, after.file, rule, rules, evidence, f"The change of {after.file}")
    if isinstance(verdict, Blocked):
        message = f"{verdict.message} This change weakens protection rules: {'; '.join(easier)}."
        return replace(verdict, gate="policy", message=message)
    return verdict


def ended_by(after: Environment, before: Environment, evidence: Evidence) -> tuple[ApprovalVote, ...]:
    """Return the rejections that a new environment file would end."""
    return ended_rejections(before, after, (evidence.votes, evidence.elsewhere), evidence.files)


def weakened(after: Environment, before: Environment | None, evidence: Evidence) -> tuple[str, ...]:
    """Describe what a new environment file weakens: the requirements that it drops, and the rejections that it ends."""
    if before is None:
        return ()
    ended = ended_by(after, before, evidence)
    sentences = (f"the rejection of {vote.name} by {vote.principal} would no longer count" for vote in ended)
    return (*weakenings(before, after), *sentences)


GATES: Sequence[Gate] = (
    trusted_root,
    not_suspended,
    not_held,
    no_mass_prune,
    from_environment,
    evidenced,
    within_window,
    approved,
    canary_passed,
)

ROLLBACK_GATES: Sequence[Gate] = (not_suspended, not_rejected)
"""Gates of a requested rollback to an earlier version, which was released here before: an emergency stop needs an operator alone."""

FORWARD_GATES: Sequence[Gate] = (not_suspended, approved)
"""Gates of a requested rollback to a later version: it was released here before, and needs no window and no soak."""


NEXT_COMMIT = "the next commit is evaluated without it"
NEXT_RECONCILIATION = "the new rules are approved, and the next reconciliation is without it"


def rules_of(environment: Environment, before: Environment | None, *, approved: bool = False) -> tuple[Rules, ...]:
    """Return the rules for a commit: its own file, and the file in force before it where that differs.

    Args:
        environment: The file in the commit.
        before: The file in force before it.
        approved: Whether people approved the change of the rules.
    """
    if before is None or before.policy_digest == environment.policy_digest:
        return (Rules(environment, frozenset({environment.policy_digest})),)
    both = frozenset({environment.policy_digest, before.policy_digest})
    until = NEXT_RECONCILIATION if approved else NEXT_COMMIT
    return (Rules(environment, frozenset({environment.policy_digest})), Rules(before, both, until))


def evaluate_gates(
    plan: ReleasePlan,
    rules: Sequence[Rules],
    evidence: Evidence,
    *,
    refused: str | None = None,
    gates: Sequence[Gate] | None = None,
) -> tuple[tuple[Action, GateVerdict], ...]:
    """Evaluate every gate for every action, under every set of rules.

    Args:
        plan: The planned changes.
        rules: The sets of rules; without any, everything is blocked.
        evidence: The evidence for gates.
        refused: The reason why a declared release is not among the actions, if there is one.
        gates: The gates to evaluate; a requested rollback needs fewer than all.
    """
    gates = GATES if gates is None else gates
    evaluated = {name_of(action): (action, _evaluate(action, plan, rules, evidence, gates)) for action in plan.actions}
    _block_dependents(plan, evaluated, evidence)
    verdicts = tuple(evaluated.values())
    blocked = refused or next((verdict.message for _, verdict in verdicts if isinstance(verdict, Blocked)), None)
    if any(item.environment.spec.atomic for item in rules) and blocked is not None:
        held = Blocked(
            "atomic", "AtomicBlocked", f"The environment is atomic, and another change is blocked: {blocked}"
        )
        return tuple((action, held if isinstance(verdict, Allowed) else verdict) for action, verdict in verdicts)
    return verdicts


def _evaluate(
    action: Action, plan: ReleasePlan, rules: Sequence[Rules], evidence: Evidence, gates: Sequence[Gate]
) -> GateVerdict:
    if not rules:
        return Blocked("policy", "PolicyInvalid", "The environment has no rules.")
    approvals: list[str] = []
    attestations: list[str] = []
    canary: str | None = None
    closed: dict[str, Blocked] = {}
    for item in rules:
        for gate in gates:
            verdict = gate(action, plan, item, evidence)
            if isinstance(verdict, Blocked):
                closed.setdefault(verdict.gate, _until(verdict, item))
            else:
                approvals += verdict.approvals
                attestations += verdict.attestations
                canary = canary or verdict.canary
    if closed:
        first, *others = closed.values()
        return replace(first, also=tuple(others), approvals=tuple(dict.fromkeys(approvals)))
    return Allowed(tuple(dict.fromkeys(approvals)), tuple(dict.fromkeys(attestations)), canary)


def _until(verdict: Blocked, rules: Rules) -> Blocked:
    if rules.until is None:
        return verdict
    return replace(verdict, message=f"{verdict.message} The rule is from before this commit; {rules.until}.")


# ---- dependencies -----------------------------------------------------------------------------------------------


def _block_dependents(plan: ReleasePlan, evaluated: dict[str, tuple[Action, GateVerdict]], evidence: Evidence) -> None:
    """Block changes that would leave a release without one that it depends on.

    Releases that depend on each other may change together; so the allowed changes are evaluated as a whole, and those
    that do not fit are removed until the rest does.
    """
    served = evidence.served.get(plan.environment, {})
    while True:
        allowed = {name: action for name, (action, verdict) in evaluated.items() if isinstance(verdict, Allowed)}
        after = _served_after(served, allowed)
        unmet = _unmet(plan, allowed, served, after)
        if unmet is None:
            return
        name, message = unmet
        evaluated[name] = (evaluated[name][0], Blocked("dependsOn", "DependencyNotReady", message))


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
            return name, f"It depends on {missing[0].name} ({missing[0].digest}), which is not released here."
    leaving = {release.digest: name for name, release in served.items() if release.digest not in after}
    for bundle in plan.unchanged.values():
        broken = [need for need in bundle.needs if need in leaving]
        if broken:
            return leaving[
                broken[0]
            ], f"{bundle.name} {bundle.version} depends on the release that this change replaces."
    return None
