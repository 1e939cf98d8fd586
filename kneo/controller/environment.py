"""The reconciliation of one environment: verify new bundles, then evaluate gates and apply changes in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain

from kneo import registry
from kneo.controller import metrics
from kneo.controller.canary import CanaryContext, follow
from kneo.controller.differences import plan_of_action, plan_of_rules
from kneo.controller.policy_gate import (
    EnvironmentFiles,
    environment_files,
    evaluate_policy_gate,
    pending_bundles,
    root_threshold,
    rules_before,
)
from kneo.controller.registry_cache import RegistryCache, RegistryState, Served
from kneo.controller.settled import Basis, SettledEnvironments, SettledResult, find_result, lasting
from kneo.controller.source.snapshot import SourceSnapshot
from kneo.controller.stages import gates, report, verify
from kneo.controller.stages.apply import apply
from kneo.controller.stages.approvals import ApprovalVote, decisions_in, signed_by_known
from kneo.controller.stages.attestations import is_not_yet_valid
from kneo.controller.stages.evidence import (
    gather_evidence,
    is_chained,
    known_canaries,
    record_attestations,
    record_decisions,
)
from kneo.controller.stages.gates import Allowed, Blocked, CommitTimes, Evidence, GateVerdict, Rules
from kneo.controller.stages.load import DeclaredState, SourceProblem, failure, find_bundles
from kneo.controller.stages.plan import Action, ReleasePlan, Retire, make_plan
from kneo.controller.stages.report import Drift, Outcome
from kneo.controller.stages.verify import Candidate, TrustContext, Verified
from kneo.controller.verification_cache import VerificationCache
from kneo.digest import Digest, digest_of
from kneo.errors import KneoError, Transient
from kneo.notify import outbox
from kneo.records.release import EnvironmentRecord, Promotion, PromotionKind, Release
from kneo.spec.models.environment import Environment
from kneo.spec.policy import windows_open
from kneo.store import releases
from kneo.store.engine import Store, Tx, lock_table
from kneo.store.requests import Lease, check_lease

DRIFT_INTERVAL = timedelta(minutes=10)
"""Interval at which all releases are verified again without another reason."""


class DriftWatch:
    """Verifies releases again when trust or rules change, and at an interval; remembers drift in between."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Digest, tuple[Drift, ...]]] = {}
        """By environment: the epoch of its last verification, and the drift that it found."""
        self._began: datetime | None = None

    def due(self, now: datetime) -> bool:
        """Return whether the interval has passed since a reconciliation last began to verify all releases."""
        return self._began is None or now >= self._began + DRIFT_INTERVAL

    def begin(self, now: datetime) -> None:
        """Begin to verify all releases; the next time is after the interval, also where a reconciliation fails before."""
        self._known.clear()
        self._began = now

    def check(
        self,
        tx: Tx,
        environment: Environment,
        trust: TrustContext,
        served: Mapping[str, Release],
        *,
        new: Collection[str],
    ) -> tuple[Drift, ...]:
        """Return the drift of an environment's releases, and replace rows of releases that no promotion explains.

        Args:
            tx: An open transaction.
            environment: The environment's file.
            trust: The trust of this reconciliation.
            served: The environment's releases.
            new: Digests that were verified for this very transaction; they are not verified again.
        """
        epoch = trust.epoch(environment)
        known = self._known.get(environment.name)
        if known is None or known[0] != epoch:
            older = (release for _, release in sorted(served.items()) if release.digest not in new)
            drift = [drifted for release in older if (drifted := _find_drift(tx, environment, trust, release))]
            known = self._known[environment.name] = (epoch, (*_restore(tx, environment.name), *drift))
        return tuple(item for item in known[1] if item.reason in UNEXPLAINED or _is_present(item, served))


UNEXPLAINED = frozenset({registry.NOT_PROMOTED, registry.PROMOTIONS_LOST})


def _is_present(item: Drift, served: Mapping[str, Release]) -> bool:
    return item.bundle in served and served[item.bundle].digest == item.digest


def _restore(tx: Tx, environment: str) -> Iterator[Drift]:
    """Restore the releases that rows without a promotion took the place of; yield these rows as drift."""
    for doubted in registry.restore_releases(tx, environment):
        row = doubted.release
        yield Drift(row.bundle, row.version, row.digest, doubted.error.code, doubted.error.message)
    lost = registry.find_lost_promotions(tx, environment)
    if lost is not None:
        yield Drift(environment, "", "", registry.PROMOTIONS_LOST, f"{lost[0].upper()}{lost[1:]}.")


def _find_drift(tx: Tx, environment: Environment, trust: TrustContext, release: Release) -> Drift | None:
    """Hash and verify a release, as the runtime does before it runs the release."""
    try:
        registry.check_served(releases.bundle(tx, release.digest), release, environment, trust.root, trust.hmac_key)
    except KneoError as error:
        message = f"{release.bundle} is released, but {error.message}"
        return Drift(release.bundle, release.version, release.digest, error.code, message)
    return None


@dataclass(frozen=True)
class ReconcileContext:
    """The context that all environments of one reconciliation share."""

    snapshot: SourceSnapshot
    declared: DeclaredState
    trust: TrustContext
    lease: Lease
    state: RegistryState
    cache: RegistryCache
    commit_times: CommitTimes | None = None
    """Set while a registry is rebuilt from Git."""

    quiet: bool = False
    """Whether notifications are suppressed, because these changes happened before."""

    @cached_property
    def files(self) -> EnvironmentFiles:
        """The files whose rules apply to a changed file."""
        threshold = root_threshold(self.trust.root)
        return environment_files(self.state.records, self.declared.environments, self.declared.revision, threshold)


@dataclass(frozen=True)
class EnvironmentContext:
    """One environment in a reconciliation."""

    environment: Environment
    before: Environment | None
    """The environment file in force before this commit, where its rules differ."""

    shared: ReconcileContext

    @property
    def name(self) -> str:
        return self.environment.name

    @property
    def files(self) -> tuple[Environment, ...]:
        return (self.environment, self.before) if self.before else (self.environment,)

    @property
    def revision(self) -> str:
        return self.shared.declared.revision

    @property
    def record(self) -> EnvironmentRecord | None:
        return self.shared.state.records.get(self.name)


@dataclass(frozen=True)
class _Evaluated:
    """The result of an evaluation.

    Args:
        outcome: The outcome.
        changed: The promotions.
        settled: What the result depends on and how long it stands, where it may be used again.
    """

    outcome: Outcome
    changed: tuple[Promotion, ...] = ()
    settled: tuple[Basis, SettledResult] | None = None


class EnvironmentReconciler:
    """Reconciles environments one by one, with a cache of verified bundles and of drift."""

    def __init__(self, store: Store, channels: Sequence[str] = ()) -> None:
        self.store = store
        self.channels = tuple(channels)
        self.drift = DriftWatch()
        self.settled = SettledEnvironments()
        self._verified = VerificationCache()
        self._recorded: dict[str, frozenset[tuple[str, str]]] = {}
        """By environment: the trust root and the ids of the attestation files whose statements are recorded."""

    def begin_drift(self, now: datetime) -> None:
        """Verify all releases, and evaluate every environment, in the next reconciliation."""
        self.drift.begin(now)
        self.settled.clear()

    def find_settled(self, environment: Environment, shared: ReconcileContext) -> Outcome | None:
        """Return the outcome of an environment that needs no evaluation; None for one that does."""
        name = environment.name
        record = shared.state.records.get(name)
        if record is None or shared.trust.before is not None or shared.commit_times is not None:
            return None
        if rules_before(record, environment, shared.declared.revision) is not None:
            return None
        waiting = (item.bundle for item in record.pending)
        basis = replace(self._basis(environment, record, shared), waiting=frozenset(waiting))
        outcome = self.settled.find(name, basis, shared.trust.now)
        if outcome is not None:
            metrics.DRIFT.labels(name).set(0)
        return outcome

    def run(self, environment: Environment, shared: ReconcileContext) -> Outcome:
        """Bring one environment to its declared state, as far as trust and gates allow.

        A failure is reported in this environment alone; the others are reconciled.

        Raises:
            Transient: the lease was lost, or another process changed the registry; nothing was written.
        """
        try:
            return self._run(environment, shared)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - logged, and a condition of this environment
            problem = failure(f"The reconciliation of {environment.name}", error)
            return self._report(environment.name, report.report_failure(problem, shared.declared.revision), shared)

    def _run(self, environment: Environment, shared: ReconcileContext) -> Outcome:
        declared, name = shared.declared, environment.name
        self.settled.forget(name)
        before = rules_before(shared.state.records.get(name), environment, declared.revision)
        if isinstance(before, SourceProblem):
            return self.refuse(name, before, shared)
        context = EnvironmentContext(environment, before, shared)
        places = find_bundles(environment, declared.blobs)
        verified = self._verify(context, places)
        approval_files = signed_by_known(declared.approval_files.get(name, ()), shared.trust.root)
        evidence_files = self._new_evidence(context)
        with self.store.write() as tx:
            check_lease(tx, shared.lease)
            # Decisions, holds and suspensions take this lock too: each comes before or after this transaction.
            lock_table(tx, f"environment/{name}")
            lost = registry.find_lost_rejection(tx, name)
            if lost is None:
                record_attestations(tx, name, tuple(evidence_files.values()), shared.trust, declared.revision)
                done = self._decide(tx, context, verified, approval_files)
        if lost is not None:
            return self.refuse(name, SourceProblem("RejectionLost", lost), shared)
        if not shared.quiet:
            _count(context, done.changed)
        read = {key for key, text in evidence_files.items() if not is_not_yet_valid(text, shared.trust.now)}
        self._recorded[name] = self._recorded.get(name, frozenset()) | read
        self._verified.remember(name, shared.trust.epoch(environment), places, declared.blobs, verified)
        if done.settled is not None and len(read) == len(evidence_files):
            self.settled.keep(name, *done.settled)
        return done.outcome

    def refuse(self, name: str, problem: SourceProblem, shared: ReconcileContext) -> Outcome:
        """Report an environment that this commit cannot change."""
        return self._report(name, report.report_problem(problem, shared.declared.revision, trusted=True), shared)

    def _basis(self, environment: Environment, record: EnvironmentRecord, shared: ReconcileContext) -> Basis:
        declared, name = shared.declared, environment.name
        served = shared.state.served.get(name, {})
        paths = (
            *find_bundles(environment, declared.blobs).values(),
            *declared.evidence_paths(environment, served.values()),
        )
        return Basis(
            file=declared.files[name],
            epoch=shared.trust.epoch(environment),
            blobs={path: declared.blobs[path] for path in paths},
            approvals=declared.approval_files.get(name, ()),
            decided=shared.state.decided.get(name, frozenset()),
            served=served,
            record=lasting(record),
            waiting=frozenset(),
        )

    def _report(self, name: str, result: report.EnvironmentReport, shared: ReconcileContext) -> Outcome:
        self.settled.forget(name)
        with self.store.write() as tx:
            check_lease(tx, shared.lease)
            report.write_report(tx, name, result, revision=shared.declared.revision)
        return result.outcome

    def _new_evidence(self, context: EnvironmentContext) -> Mapping[tuple[str, str], bytes]:
        """Read the attestation files that were not read under this trust root; those of one content are read once."""
        shared, declared = context.shared, context.shared.declared
        paths = declared.evidence_paths(context.environment, shared.state.served.get(context.name, {}).values())
        known, root = self._recorded.get(context.name, frozenset()), shared.trust.root.digest
        new = {(root, declared.blobs[path]): path for path in paths if (root, declared.blobs[path]) not in known}
        texts = shared.snapshot.read(new.values())
        return {key: texts[path] for key, path in new.items()}

    def _verify(self, context: EnvironmentContext, places: Mapping[str, str]) -> Verified:
        """Verify new bundles; the files of releases that were verified under the same trust are not even read."""
        shared, environment = context.shared, context.environment
        served = shared.state.served.get(context.name, {})
        epoch, blobs = shared.trust.epoch(environment), shared.declared.blobs
        unchanged = self._verified.unchanged(environment, epoch, places, blobs, served)
        paths = {name: path for name, path in places.items() if name not in unchanged}
        envelopes = shared.snapshot.read(paths.values())
        if context.record is not None and context.record.trust_epoch == epoch:
            unchanged |= self._verified.recognise(environment, paths, envelopes, served)
        pending = pending_bundles(context.record)
        history, released = shared.state.history, frozenset[str]()
        if context.before is not None or shared.trust.before is not None:
            with self.store.read() as tx:
                released = releases.served_before(tx, context.name, verify.known_digests(history, paths))
        verified = verify.verify(
            context.files, shared.declared, envelopes, shared.trust, history, unchanged, pending, released
        )
        metrics.VERIFIED.labels("accepted", "").inc(len(verified.candidates))
        for rejection in verified.rejected:
            metrics.VERIFIED.labels("rejected", rejection.reason).inc()
        return verified

    def _decide(
        self, tx: Tx, context: EnvironmentContext, verified: Verified, approval_files: Sequence[bytes]
    ) -> _Evaluated:
        shared, trust = context.shared, context.shared.trust
        served = shared.cache.read(tx, shared.lease.fence).served
        _check_unmoved(context, served)
        record_decisions(tx, context.name, approval_files, trust)
        evidence = gather_evidence(tx, context.files, approval_files, trust, served, verified.candidates)
        evidence = replace(evidence, commit_times=shared.commit_times)
        rules = _evaluate_rules(context, evidence)
        if isinstance(rules, Blocked):
            result = report.report_policy(context.environment, rules, context.revision)
            report.write_report(tx, context.name, result, revision=context.revision)
            weakened = gates.weakened(context.environment, context.before, evidence)
            registry.keep_plans(tx, context.name, (plan_of_rules(context.before, context.environment, weakened),))
            return _Evaluated(result.outcome)
        record = _accept_file(tx, context, rules, evidence)
        both = gates.rules_of(context.environment, context.before, approved=bool(rules.approvals))
        outcome, changed, standing = self._change(tx, context, verified, evidence, both)
        if standing is None or trust.before is not None or not _all_recorded(tx, context.name, approval_files):
            return _Evaluated(outcome, changed)
        basis = self._basis(context.environment, record, shared)
        after = shared.cache.read(tx, shared.lease.fence).served.get(context.name, {})
        waiting = frozenset(item.bundle for item in releases.pending(tx, context.name))
        return _Evaluated(outcome, changed, (replace(basis, served=after, waiting=waiting), standing))

    def _change(
        self, tx: Tx, context: EnvironmentContext, verified: Verified, evidence: Evidence, rules: Sequence[Rules]
    ) -> tuple[Outcome, tuple[Promotion, ...], SettledResult | None]:
        shared, name, revision = context.shared, context.name, context.revision
        plan = make_plan(
            context.environment, revision, verified, evidence.served.get(name, {}), shared.state.history.known
        )
        verdicts = gates.evaluate_gates(plan, rules, evidence, refused=verified.refusal)
        canary_context = CanaryContext(
            environment=context.environment,
            revision=revision,
            plan=plan,
            verified=verified,
            trust=shared.trust,
            rebuilding=shared.commit_times is not None,
        )
        if follow(tx, canary_context, verdicts):
            evidence = known_canaries(tx, evidence, name, shared.trust)
            verdicts = gates.evaluate_gates(plan, rules, evidence, refused=verified.refusal)
        allowed = [(action, verdict) for action, verdict in verdicts if isinstance(verdict, Allowed)]
        blocked = [(action, verdict) for action, verdict in verdicts if isinstance(verdict, Blocked)]
        if shared.commit_times is not None:
            releases.qualify(tx, name, _qualified(blocked, plan, rules, evidence, shared.commit_times), revision)
        change = registry.ReleaseChange(revision=revision, policy_digest=context.environment.policy_digest)
        changed = apply(tx, name, allowed, change)
        shared.cache.add(changed)
        if _update_signatures(tx, context, verified):
            shared.cache.invalidate()
        served = shared.cache.read(tx, shared.lease.fence).served.get(name, {})
        new = {action.bundle.digest for action, _ in allowed if not isinstance(action, Retire)}
        drift = self.drift.check(tx, context.environment, shared.trust, served, new=new)
        if any(item.reason == registry.NOT_PROMOTED for item in drift):
            # The rows of its releases may be other ones now.
            shared.cache.invalidate()
        metrics.DRIFT.labels(name).set(len(drift))
        result = report.report(
            report.Findings(
                revision=revision,
                environment=context.environment,
                rejected=verified.rejected,
                blocked=blocked,
                changed=len(allowed),
                drift=drift,
                open_tasks=registry.open_tasks(tx, name) if context.environment.spec.retired else None,
            )
        )
        pending = report.write_report(tx, name, result, revision=revision)
        cases = ((action, gates.evidence_case(action, plan, evidence)) for action, _ in blocked)
        registry.keep_plans(tx, name, (plan_of_action(tx, each, context.environment, case) for each, case in cases))
        if not shared.quiet:
            changes = report.notices_of_changes(name, revision, tx.at, allowed)
            findings = report.notices_of_findings(name, revision, pending, drift)
            outbox.post(tx, self.channels, chain(changes, findings))
        root, is_changed = shared.trust.root, bool(changed)
        return result.outcome, changed, find_result(result.outcome, blocked, rules, evidence, root, changed=is_changed)


def _all_recorded(tx: Tx, environment: str, approval_files: Sequence[bytes]) -> bool:
    """Return whether the decisions of a commit are recorded; one that is dated in the future is later."""
    found = dict(decisions_in(approval_files))
    here = {digest for digest, of in found.items() if of == environment}
    return not here or here <= {record.payload_digest for record in releases.list_approvals(tx, environment)}


def _qualified(
    blocked: Sequence[tuple[Action, Blocked]],
    plan: ReleasePlan,
    rules: Sequence[Rules],
    evidence: Evidence,
    times: CommitTimes,
) -> Iterator[str]:
    """Yield the bundles that qualify in a rebuild: only evidence that was lost with the registry is missing.

    Lost evidence is an approval that has no rejection, or a window that is closed now and was open by the commit dates.
    """
    for action, verdict in blocked:
        if isinstance(action, Retire) or not any(is_chained(item.environment) for item in rules):
            continue
        lost = all(_was_open(item, rules, times) for item in (verdict, *verdict.also))
        if lost and all(isinstance(gates.from_environment(action, plan, item, evidence), Allowed) for item in rules):
            yield action.bundle.digest


def _was_open(blocked: Blocked, rules: Sequence[Rules], times: CommitTimes) -> bool:
    if blocked.gate == "windows":
        return any(all(windows_open(item.environment.windows, at) for item in rules) for at in (times.at, times.until))
    return blocked.gate == "approvals" and blocked.reason == "AwaitingApproval"


def _count(context: EnvironmentContext, changed: Sequence[Promotion]) -> None:
    """Count committed promotions."""
    committed = context.shared.snapshot.committed_at
    lead = context.shared.trust.now.timestamp() - committed if committed is not None else None
    for promotion in changed:
        metrics.CHANGES.labels(context.name, promotion.kind.value).inc()
        if lead is not None and promotion.kind is not PromotionKind.RETIRE:
            metrics.LEAD_SECONDS.labels(context.name).observe(max(0.0, lead))


def _check_unmoved(context: EnvironmentContext, served: Served) -> None:
    if served.get(context.name, {}) != context.shared.state.served.get(context.name, {}):
        msg = f"The releases of {context.name} changed while a plan for them was made."
        raise Transient(msg, code="RegistryMoved")


def _evaluate_rules(context: EnvironmentContext, evidence: Evidence) -> GateVerdict:
    record = context.record
    if record is not None and (record.policy_digest == context.environment.policy_digest or context.before is None):
        return Allowed()
    return evaluate_policy_gate(context.environment, context.before, context.shared.files, evidence)


def _accept_file(tx: Tx, context: EnvironmentContext, rules: Allowed, evidence: Evidence) -> EnvironmentRecord:
    before, overruled = context.before, tuple[ApprovalVote, ...]()
    if before is not None and rules.approvals:
        overruled = gates.ended_by(context.environment, before, evidence)
    return registry.accept_environment(
        tx,
        context.name,
        context.shared.declared.files[context.name],
        context.environment.policy_digest,
        revision=context.revision,
        epoch=context.shared.trust.epoch(context.environment),
        approvals=rules.approvals,
        overruled=[vote.id for vote in overruled],
    )


def _update_signatures(tx: Tx, context: EnvironmentContext, verified: Verified) -> bool:
    """Store changed signatures of accepted bundles, which later verifications use; return whether there were any."""
    accepted, updated = context.shared.state.history.known, False
    for bundle in verified.desired.values():
        if not isinstance(bundle, Candidate) or bundle.digest not in accepted:
            continue
        if accepted[bundle.digest].envelope_digest != digest_of(bundle.record.envelope):
            registry.update_signatures(tx, bundle.record, revision=context.revision)
            updated = True
    return updated
