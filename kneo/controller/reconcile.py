"""The reconciliation of a commit: from the source to the releases and conditions of every environment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from kneo import registry
from kneo.controller import metrics
from kneo.controller.canary import settle_all
from kneo.controller.environment import EnvironmentReconciler, ReconcileContext
from kneo.controller.policy_gate import is_retired
from kneo.controller.preview import preview
from kneo.controller.registry_cache import RegistryCache, Served, read_registry
from kneo.controller.rollback import parse_rollback, roll_back
from kneo.controller.settled import turning_times_of
from kneo.controller.source.mirror import Mirror
from kneo.controller.source.snapshot import SourceSnapshot
from kneo.controller.source_tracker import UNREACHABLE, SourceTracker
from kneo.controller.stages.gates import CommitTimes
from kneo.controller.stages.load import DeclaredState, Loader, SourceProblem, failure, in_order, removed
from kneo.controller.stages.report import (
    EnvironmentReport,
    Outcome,
    ReconcileFailed,
    Stalled,
    report_failure,
    report_problem,
    write_report,
)
from kneo.controller.stages.verify import TrustConfig, TrustContext, establish_trust
from kneo.digest import Digest
from kneo.errors import Invalid, Transient
from kneo.records.release import EnvironmentRecord
from kneo.spec.models.environment import Environment
from kneo.store import audit, requests
from kneo.store.engine import Store, Tx
from kneo.store.requests import ControllerRequest, Lease, check_lease
from kneo.telemetry import span
from kneo.trust.keys import PublicKey

log = logging.getLogger("kneo.controller")

T = TypeVar("T")


@dataclass
class CommitCalendar:
    """The start of each release by the dates of the replayed commits, while a registry is rebuilt from Git.

    Commit dates are set by their authors. They count only for the time since a release began, and never make that longer
    than the time since the bundle was signed.

    Args:
        now: The latest time that a commit date counts as.
    """

    now: datetime
    _at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    _since: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def begin(self, commit: SourceSnapshot, following: SourceSnapshot | None) -> CommitTimes:
        """Return the times of a commit.

        Args:
            commit: The commit.
            following: The commit after it; None for the newest.
        """
        self._at = max(self._at, self._date(commit))
        until = max(self._at, self._date(following)) if following is not None else self.now
        return CommitTimes(since=dict(self._since), at=self._at, until=until)

    def end(self, after: Served) -> None:
        """Record the releases after a commit."""
        self._since = {
            (environment, release.digest): self._since.get((environment, release.digest), self._at)
            for environment, served in after.items()
            for release in served.values()
        }

    def _date(self, commit: SourceSnapshot) -> datetime:
        # A commit without a readable date counts as made now, so that no soak time passes because of it.
        if commit.committed_at is None:
            return self.now
        return min(self.now, datetime.fromtimestamp(commit.committed_at, UTC))


@dataclass(frozen=True)
class ReconcileResult:
    """The outcome of a reconciliation, by environment; one that is retired and whose file is gone has none."""

    revision: str
    outcomes: Mapping[str, Outcome]
    problem: SourceProblem | None = None
    """The problem of the whole commit."""

    @property
    def has_failed(self) -> bool:
        """Whether the reconciliation of an environment failed and has to be tried again."""
        return any(isinstance(outcome, ReconcileFailed) for outcome in self.outcomes.values())


Handler = Callable[[ControllerRequest, Lease], Mapping[str, object]]
"""Executes a request row."""


class Reconciler:
    """Brings the registry to the state that the commits of a repository declare.

    Args:
        store: The registry's database.
        mirror: The mirror of the repository.
        pin: Digest of the pinned trust root.
        service_key: The key of the own service; None counts no decision that the service recorded.
        hmac_key: The shared secret of bundles in the older format, where an environment accepts them.
        channels: Channels of notifications.
    """

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        pin: Digest,
        *,
        service_key: PublicKey | None = None,
        hmac_key: str = "",
        channels: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.mirror = mirror
        self.config = TrustConfig(pin, service_key, hmac_key)
        self.commit: str | None = None
        """The last commit that was reconciled whole."""

        self._until: datetime | None = None
        """The first time after that at which its trust root may cease to count."""

        self.environments = EnvironmentReconciler(store, channels)
        self._source = SourceTracker(store, mirror, pin)
        self._loader = Loader()
        self._cache = RegistryCache()

    def reconcile(self, lease: Lease) -> ReconcileResult:
        """Bring the registry to the state that the newest commit declares, as far as trust and gates allow.

        Raises:
            Transient: the repository or the database did not answer; nothing was written, try again.
            Invalid: the repository itself cannot be followed (``HistoryRewritten``, ``LimitExceeded``, …). The problem is in
                every environment's conditions; current releases stay.

        Any other exception is a defect; it is in every environment's conditions too, and is raised.
        """
        with span("kneo.reconcile") as traced:
            try:
                result = self._reconcile(lease)
            except (Transient, Invalid):
                raise
            except Exception as error:
                self._report_failure(error, lease)
                raise
            traced.note(
                kneo_revision=result.revision,
                kneo_problem=result.problem.reason if result.problem is not None else None,
            )
        return result

    def _reconcile(self, lease: Lease) -> ReconcileResult:
        self.commit = None
        if self.drift_due():
            self.environments.begin_drift(self.store.clock.now())
            self._cache.invalidate()
        with span("kneo.source.fetch", kind="client"):
            snapshot = self._guarded(lease, self._source.fetch)
        earlier = self._guarded(lease, lambda: self._source.commits_to_replay(snapshot))
        if earlier or self._rebuilding():
            result = self._rebuild([*earlier, snapshot], lease)
        else:
            result, _ = self._follow(snapshot, lease)
        if result.problem is None and not result.has_failed:
            self.commit = snapshot.commit
        return result

    def _report_failure(self, error: Exception, lease: Lease) -> None:
        problem = failure("The reconciliation", error)
        self.environments.settled.clear()
        with self.store.write() as tx:
            check_lease(tx, lease)
            _report_everywhere(tx, report_failure(problem, UNKNOWN), UNKNOWN)
        audit.seal(self.store)

    def _rebuild(self, commits: Sequence[SourceSnapshot], lease: Lease) -> ReconcileResult:
        """Reconcile an empty registry with one commit after another.

        The releases of an environment depend on earlier commits too: a version that was promoted while the environment before
        it still had it, a release that a broken file keeps.
        """
        log.info("rebuilding the registry from %d commits", len(commits))
        with self.store.write() as tx:
            check_lease(tx, lease)
            requests.begin_rebuild(tx, self.mirror.address.url, self.mirror.ref)
        calendar = CommitCalendar(self.store.clock.now())
        try:
            for commit, following in zip(commits, [*commits[1:], None], strict=True):
                times = calendar.begin(commit, following)
                result, after = self._follow(commit, lease, times, quiet=following is not None)
                calendar.end(after)
        except Invalid:
            # A controller that followed these commits one by one would have stopped here as well.
            self._end_rebuild(lease)
            raise
        self._end_rebuild(lease)
        return result

    def _rebuilding(self) -> bool:
        with self.store.read() as tx:
            return requests.is_rebuilding(tx)

    def _end_rebuild(self, lease: Lease) -> None:
        with self.store.write() as tx:
            check_lease(tx, lease)
            requests.end_rebuild(tx)

    def _follow(
        self, snapshot: SourceSnapshot, lease: Lease, times: CommitTimes | None = None, *, quiet: bool = False
    ) -> tuple[ReconcileResult, Served]:
        """Reconcile one commit; return its result and the releases after it."""
        self._guarded(lease, lambda: self._source.check_signed(snapshot))
        declared = self._guarded(lease, lambda: self._loader.load(snapshot))
        with self.store.read() as tx:
            state, rebuilding = read_registry(tx, self._cache.read(tx, lease.fence)), requests.is_rebuilding(tx)
        trust = establish_trust(self.config, declared, state.roots, self.store.clock.now(), rebuilding=rebuilding)
        self._accept(snapshot, declared, trust, lease, last=not quiet)
        if isinstance(trust, SourceProblem):
            audit.seal(self.store)
            stalled = Stalled(trust.reason, trust.message)
            outcomes: Mapping[str, Outcome] = dict.fromkeys(declared.environments, stalled)
            return ReconcileResult(declared.revision, outcomes, trust), state.served
        later = (time for time in turning_times_of(trust.root) if time > trust.now)
        self._until = min(later, default=None)
        metrics.ROOT_EXPIRY.set(trust.root.expires.timestamp())
        self.environments.settled.begin(lease.fence)
        context = ReconcileContext(snapshot, declared, trust, lease, state, self._cache, times, quiet)
        outcomes = self._each_environment(context)
        audit.seal(self.store)
        with self.store.read() as tx:
            return ReconcileResult(declared.revision, outcomes), self._cache.read(tx, lease.fence).served

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Handlers of request rows, by kind."""
        # A stored dictionary would keep this object alive in a cycle, and the process that reads the mirror with it.
        return {"rollback": self._roll_back, "plan": self._preview}

    def is_current(self) -> bool:
        """Return whether the ref still names the last commit that was reconciled whole, whose trust no time has changed.

        Raises:
            Transient, Invalid: see ``Mirror.poll``.
        """
        if self.commit is None or (self._until is not None and self.store.clock.now() >= self._until):
            return False
        return self._source.poll() == self.commit

    def drift_due(self) -> bool:
        """Return whether all releases are due for verification."""
        return self.environments.drift.due(self.store.clock.now())

    def settle_canaries(self, lease: Lease) -> frozenset[tuple[str, int]]:
        """Settle the runs of canaries, as ``settle_all`` does."""
        return settle_all(self.store, lease)

    def _roll_back(self, request: ControllerRequest, lease: Lease) -> Mapping[str, object]:
        # A rollback changes releases outside of the cache.
        self._cache.invalidate()
        rollback = parse_rollback(request.payload, request.actor)
        self.environments.settled.forget(rollback.environment)
        return roll_back(self.store, rollback, lease, self.config, self.environments.channels)

    def _preview(self, request: ControllerRequest, _lease: Lease) -> Mapping[str, object]:
        ref, name = request.payload.get("ref"), request.payload.get("environment")
        snapshot = self.mirror.peek(str(ref)) if ref else self.mirror.fetch()
        with self.store.read() as tx:
            return preview(tx, snapshot, self.mirror, self.config, str(name) if name else None)

    def _guarded(self, lease: Lease, read: Callable[[], T]) -> T:
        """Read from the repository; report a problem of the repository in every environment."""
        try:
            return read()
        except Invalid as error:
            if error.code in UNREACHABLE:
                raise
            self.environments.settled.clear()
            with self.store.write() as tx:
                check_lease(tx, lease)
                self._source.refuse(tx, error)
                problem = SourceProblem(error.code, str(error))
                _report_everywhere(tx, report_problem(problem, UNKNOWN, trusted=False), UNKNOWN)
            audit.seal(self.store)
            raise

    def _accept(
        self,
        snapshot: SourceSnapshot,
        declared: DeclaredState,
        trust: TrustContext | SourceProblem,
        lease: Lease,
        *,
        last: bool,
    ) -> None:
        """Accept the commit and its trust roots, or report why not."""
        with self.store.write() as tx:
            check_lease(tx, lease)
            if isinstance(trust, SourceProblem):
                self.environments.settled.clear()
                self._source.refuse(tx, Invalid(trust.message, code=trust.reason, new=snapshot.commit))
                result = report_problem(trust, declared.revision, trusted=False)
                _report_everywhere(tx, result, declared.revision, declared.environments)
            else:
                (self._source.accept if last else self._source.accept_earlier)(tx, snapshot)
                registry.accept_roots(tx, declared.roots, revision=declared.revision)

    def _each_environment(self, context: ReconcileContext) -> dict[str, Outcome]:
        declared, state, outcomes = context.declared, context.state, dict[str, Outcome]()
        settled: list[EnvironmentRecord] = []
        for name in in_order(declared.environments):
            environment = declared.environments[name]
            known = (
                self.environments.find_settled(environment, context) if isinstance(environment, Environment) else None
            )
            if known is not None:
                outcomes[name] = known
                settled.append(state.records[name])
                continue
            with span("kneo.reconcile.environment", kneo_environment=name) as traced:
                if isinstance(environment, SourceProblem):
                    outcomes[name] = self.environments.refuse(name, environment, context)
                else:
                    outcomes[name] = self.environments.run(environment, context)
                traced.note(kneo_state=outcomes[name].state)
        for name in sorted(set(state.names) - set(declared.environments)):
            if is_retired(state.records.get(name), state.served):
                continue
            with self.store.read() as tx:
                problem = removed(name, declared.revision, registry.open_tasks(tx, name))
            outcomes[name] = self.environments.refuse(name, problem, context)
        if any(record.revision != declared.revision for record in settled):
            with self.store.write() as tx:
                check_lease(tx, context.lease)
                registry.move_environments(tx, settled, declared.revision)
        return outcomes


UNKNOWN = "unknown"
"""The revision of a report about a commit that could not be read."""


def _report_everywhere(tx: Tx, result: EnvironmentReport, revision: str, declared: Collection[str] = ()) -> None:
    """Report a problem in every environment but those that are retired, which the repository no longer concerns."""
    state = read_registry(tx)
    known = {name for name in state.names if not is_retired(state.records.get(name), state.served)}
    for name in sorted({*declared, *known}):
        metrics.READY.labels(name).set(False)
        write_report(tx, name, result, revision=revision)
