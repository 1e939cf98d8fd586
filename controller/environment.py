"""One environment in one pass: verify what is new, then, in one transaction, ask the gates and do what they allow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain

from controller import metrics
from controller.approvals import signed_by_known
from controller.policy_gate import EnvironmentFiles, evaluate_policy_gate
from controller.registry_state import (
    DecisionTrust,
    RegistryCache,
    RegistryState,
    Served,
    gather_evidence,
    record_decisions,
    rules_before,
)
from controller.source.snapshot import SourceSnapshot
from controller.stages.apply import Lease, apply, check_lease
from controller.stages.gates import (
    Allowed,
    Blocked,
    CommitTimes,
    Evidence,
    GateVerdict,
    Rules,
    evaluate_gates,
    from_environment,
    rules_of,
)
from controller.stages.load import DeclaredState, SourceProblem, find_bundles
from controller.stages.plan import Action, ReleasePlan, Retire, make_plan
from controller.stages.report import (
    Drift,
    Findings,
    Outcome,
    notices_of_changes,
    notices_of_findings,
    report,
    report_policy,
    report_problem,
    write_report,
)
from controller.stages.verify import Candidate, TrustContext, Verified, verify
from controller.verification_cache import VerificationCache
from kneo import registry
from kneo.digest import Digest, digest_of
from kneo.errors import KneoError, Transient
from kneo.notify import outbox
from kneo.records.release import EnvironmentRecord, Promotion, PromotionKind, Release
from kneo.registry import ReleaseChange
from kneo.spec.models.environment import Environment
from kneo.spec.windows import windows_open
from kneo.store import releases
from kneo.store.engine import Store, Tx, lock_table
from kneo.trust.keys import PublicKey

DRIFT_INTERVAL = timedelta(minutes=10)
"""How often everything that is served is looked at again when nothing else is a reason to."""


class DriftWatch:
    """Looks when trust or rules changed, and every so often; remembers what it found in between."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Digest, datetime, tuple[Drift, ...]]] = {}

    def due(self, now: datetime) -> bool:
        """Say whether it is time to look again without another reason."""
        return any(now >= looked + DRIFT_INTERVAL for _, looked, _ in self._seen.values())

    def look(
        self,
        tx: Tx,
        environment: Environment,
        trust: TrustContext,
        served: Mapping[str, Release],
        *,
        fresh: Collection[str],
    ) -> tuple[Drift, ...]:
        """Say what is wrong with what an environment serves.

        Args:
            tx: An open transaction.
            environment: Its file.
            trust: What is believed.
            served: What it serves.
            fresh: Digests that were verified and written in this very transaction; they are not looked at again.
        """
        epoch = trust.epoch(environment)
        known = self._seen.get(environment.name)
        if known is None or known[0] != epoch or trust.now >= known[1] + DRIFT_INTERVAL:
            older = {name: release for name, release in served.items() if release.digest not in fresh}
            known = (epoch, trust.now, tuple(find_drift(tx, environment, trust, older)))
            self._seen[environment.name] = known
        return tuple(item for item in known[2] if item.bundle in served and served[item.bundle].digest == item.digest)


def find_drift(tx: Tx, environment: Environment, trust: TrustContext, served: Mapping[str, Release]) -> list[Drift]:
    """Hash and verify everything an environment serves, as the runtime would before running it."""
    found = []
    for name, release in sorted(served.items()):
        try:
            registry.check_served(releases.bundle(tx, release.digest), release, environment, trust.root, trust.hmac_key)
        except KneoError as error:
            found.append(Drift(name, release.digest, error.code, error.message))
    return found


@dataclass(frozen=True)
class ReconcileContext:
    """What all environments of one pass share."""

    snapshot: SourceSnapshot
    declared: DeclaredState
    trust: TrustContext
    lease: Lease
    observed: RegistryState
    ledger: RegistryCache
    files: EnvironmentFiles
    dated: CommitTimes | None = None
    """Set while a registry is rebuilt from Git."""

    quiet: bool = False
    """Whether people are told nothing, because what happens here happened before."""


@dataclass(frozen=True)
class EnvironmentContext:
    environment: Environment
    before: Environment | None
    """The rules in force before this commit, where they are others."""

    situation: ReconcileContext

    @property
    def name(self) -> str:
        return self.environment.name

    @property
    def files(self) -> tuple[Environment, ...]:
        return (self.environment, self.before) if self.before else (self.environment,)

    @property
    def revision(self) -> str:
        return self.situation.declared.revision

    @property
    def record(self) -> EnvironmentRecord | None:
        return self.situation.observed.records.get(self.name)

    @property
    def waited(self) -> frozenset[str]:
        """Digests of the bundles that were verified for this environment before and wait for a gate."""
        waiting = self.record.pending if self.record is not None else ()
        return frozenset(item.digest for item in waiting if item.digest is not None)


class EnvironmentReconciler:
    """Does the same for each environment, and remembers what need not be done again."""

    def __init__(self, store: Store, service_key: PublicKey | None, channels: Sequence[str] = ()) -> None:
        self.store = store
        self.channels = tuple(channels)
        self.service_key = service_key
        self.drift = DriftWatch()
        self._judged = VerificationCache()

    def run(self, environment: Environment, situation: ReconcileContext) -> Outcome:
        """Bring one environment to what its file says, as far as trust and gates allow.

        Raises:
            Transient: the lease was lost, or somebody else changed the registry meanwhile; nothing was written.
        """
        record = situation.observed.records.get(environment.name)
        before = rules_before(record, environment, situation.declared.revision)
        if isinstance(before, SourceProblem):
            return self.refuse(environment.name, before, situation)
        case = EnvironmentContext(environment, before, situation)
        places = find_bundles(environment, situation.declared.blobs)
        verified = self._verify(case, places)
        ballots = signed_by_known(situation.declared.ballots.get(case.name, ()), situation.trust.root)
        with self.store.write() as tx:
            check_lease(tx, situation.lease)
            # Whoever changes what gates look at takes this lock too, and so comes before or after.
            lock_table(tx, f"environment/{case.name}")
            outcome, changed = self._decide(tx, case, verified, ballots)
        if not situation.quiet:
            _count(case, changed)
        epoch = situation.trust.epoch(environment)
        self._judged.remember(environment.name, epoch, places, situation.declared.blobs, verified)
        return outcome

    def refuse(self, name: str, problem: SourceProblem, situation: ReconcileContext) -> Outcome:
        """Report an environment that this commit cannot change."""
        found = report_problem(problem, situation.declared.revision, trusted=True)
        with self.store.write() as tx:
            check_lease(tx, situation.lease)
            write_report(tx, name, found, revision=situation.declared.revision)
        return found.outcome

    def _verify(self, case: EnvironmentContext, places: Mapping[str, str]) -> Verified:
        """Judge what is new. What is served and was judged under this very trust is not even read."""
        situation = case.situation
        here = situation.observed.served.get(case.name, {})
        epoch, blobs = situation.trust.epoch(case.environment), situation.declared.blobs
        standing = self._judged.standing(case.environment, epoch, places, blobs, here)
        paths = {name: path for name, path in places.items() if name not in standing}
        envelopes = situation.snapshot.read(paths.values())
        if case.record is not None and case.record.trust_epoch == epoch:
            standing |= self._judged.recognise(case.environment, paths, envelopes, here)
        history = situation.observed.history
        verified = verify(case.files, situation.declared, envelopes, situation.trust, history, standing, case.waited)
        accepted = sum(isinstance(bundle, Candidate) for bundle in verified.desired.values())
        metrics.VERIFIED.labels("accepted", "").inc(accepted)
        for rejection in verified.rejected:
            metrics.VERIFIED.labels("rejected", rejection.reason).inc()
        return verified

    def _decide(
        self, tx: Tx, case: EnvironmentContext, verified: Verified, ballots: Sequence[bytes]
    ) -> tuple[Outcome, tuple[Promotion, ...]]:
        situation = case.situation
        everywhere = situation.ledger.look(tx, situation.lease.fence).served
        _check_unmoved(case, everywhere)
        believed = DecisionTrust(root=situation.trust.root, service_key=self.service_key, now=situation.trust.now)
        record_decisions(tx, case.name, ballots, believed)
        seen = gather_evidence(tx, case.files, ballots, believed, everywhere, verified.candidates)
        seen = replace(seen, dated=situation.dated)
        agreed = _agree_to_rules(case, seen)
        if isinstance(agreed, Blocked):
            found = report_policy(case.environment, agreed, case.revision)
            write_report(tx, case.name, found, revision=case.revision)
            return found.outcome, ()
        _accept_file(tx, case, agreed)
        return self._change(tx, case, verified, seen)

    def _change(
        self, tx: Tx, case: EnvironmentContext, verified: Verified, seen: Evidence
    ) -> tuple[Outcome, tuple[Promotion, ...]]:
        plan = make_plan(
            case.name,
            case.revision,
            desired=verified.desired,
            kept={rejection.bundle for rejection in verified.rejected},
            observed=seen.served.get(case.name, {}),
            known=case.situation.observed.history.known,
        )
        refused = verified.rejected[0].message if verified.rejected else None
        judged = evaluate_gates(plan, rules_of(case.environment, case.before), seen, refused=refused)
        allowed = [(action, verdict) for action, verdict in judged if isinstance(verdict, Allowed)]
        if case.situation.dated is not None:
            waiting = [(action, verdict) for action, verdict in judged if isinstance(verdict, Blocked)]
            releases.qualify(tx, case.name, _qualified(waiting, plan, case, seen), case.revision)
        ledger, fence = case.situation.ledger, case.situation.lease.fence
        change = ReleaseChange(revision=case.revision, policy_digest=case.environment.policy_digest)
        changed = apply(tx, case.name, allowed, change)
        ledger.wrote(changed)
        if _keep_signatures(tx, case, verified):
            ledger.forget()
        here = ledger.look(tx, fence).served.get(case.name, {})
        fresh = {action.bundle.digest for action, _ in allowed if not isinstance(action, Retire)}
        drift = self.drift.look(tx, case.environment, case.situation.trust, here, fresh=fresh)
        metrics.DRIFT.labels(case.name).set(len(drift))
        found = report(
            Findings(
                revision=case.revision,
                environment=case.environment,
                rejected=verified.rejected,
                waiting=[(action, verdict) for action, verdict in judged if isinstance(verdict, Blocked)],
                changed=len(allowed),
                drift=drift,
                questions=registry.open_tasks(tx, case.name) if case.environment.spec.retired else None,
            )
        )
        news = write_report(tx, case.name, found, revision=case.revision)
        if case.situation.quiet:
            return found.outcome, changed
        changes = notices_of_changes(case.name, case.revision, tx.at, allowed)
        findings = notices_of_findings(case.name, case.revision, news, drift, here)
        outbox.post(tx, self.channels, chain(changes, findings))
        return found.outcome, changed


def _qualified(
    waiting: Sequence[tuple[Action, Blocked]], plan: ReleasePlan, case: EnvironmentContext, seen: Evidence
) -> Iterator[str]:
    """Find what came far enough in the environment before, and waits only for what the lost registry had.

    That is an approval that nobody has rejected, or a window that is closed now and was open then by the dates of the commits.
    """
    rules = rules_of(case.environment, case.before)
    for action, verdict in waiting:
        if isinstance(action, Retire) or all(item.environment.spec.promote_from is None for item in rules):
            continue
        lost = all(_was_open(item, rules, case.situation.dated) for item in (verdict, *verdict.also))
        if lost and all(isinstance(from_environment(action, plan, item, seen), Allowed) for item in rules):
            yield action.bundle.digest


def _was_open(closed: Blocked, rules: Sequence[Rules], dated: CommitTimes | None) -> bool:
    if closed.gate == "windows" and dated is not None:
        times = (dated.at, dated.until)
        return any(all(windows_open(item.environment.windows, time) for item in rules) for time in times)
    return closed.gate == "approvals" and closed.reason == "AwaitingApproval"


def _count(case: EnvironmentContext, changed: Sequence[Promotion]) -> None:
    """Count what has happened, once it has."""
    committed = case.situation.snapshot.committed_at
    lead = case.situation.trust.now.timestamp() - committed if committed is not None else None
    for promotion in changed:
        metrics.CHANGES.labels(case.name, promotion.kind.value).inc()
        if lead is not None and promotion.kind is not PromotionKind.RETIRE:
            metrics.LEAD_SECONDS.labels(case.name).observe(max(0.0, lead))


def _check_unmoved(case: EnvironmentContext, everywhere: Served) -> None:
    if everywhere.get(case.name, {}) != case.situation.observed.served.get(case.name, {}):
        msg = f"The releases of {case.name} changed while a plan for them was made."
        raise Transient(msg, code="RegistryMoved")


def _agree_to_rules(case: EnvironmentContext, seen: Evidence) -> GateVerdict:
    record = case.record
    if record is not None and (record.policy_digest == case.environment.policy_digest or case.before is None):
        return Allowed()
    return evaluate_policy_gate(case.environment, case.before, case.situation.files, seen)


def _accept_file(tx: Tx, case: EnvironmentContext, agreed: Allowed) -> None:
    registry.accept_environment(
        tx,
        case.name,
        case.situation.declared.files[case.name],
        case.environment.policy_digest,
        revision=case.revision,
        epoch=case.situation.trust.epoch(case.environment),
        approvals=agreed.approvals,
    )


def _keep_signatures(tx: Tx, case: EnvironmentContext, verified: Verified) -> bool:
    """Take over signatures that were added to an accepted bundle, so that it can be verified by them from now on.

    Returns:
        Whether there were any.
    """
    known, kept = case.situation.observed.history.known, False
    for bundle in verified.desired.values():
        if not isinstance(bundle, Candidate) or bundle.digest not in known:
            continue
        if known[bundle.digest].envelope_digest != digest_of(bundle.record.envelope):
            registry.update_signatures(tx, bundle.record, revision=case.revision)
            kept = True
    return kept
