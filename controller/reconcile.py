"""One pass: a commit in, every environment's releases and conditions out. Reads as the list of its steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from controller import metrics
from controller.environment import EnvironmentReconciler, ReconcileContext
from controller.policy_gate import environment_files, root_threshold
from controller.preview import TrustConfig, preview
from controller.registry_state import RegistryCache, RegistryState, Served, is_retired, read_registry
from controller.rollback import parse_rollback, roll_back
from controller.source.mirror import Mirror
from controller.source.snapshot import SourceSnapshot
from controller.source_tracker import UNREACHABLE, SourceTracker
from controller.stages.apply import Lease, check_lease
from controller.stages.gates import CommitTimes
from controller.stages.load import DeclaredState, Loader, SourceProblem, in_order, removed
from controller.stages.report import Outcome, Ready, Stalled, report_problem, write_report
from controller.stages.verify import TrustContext, root_before, verify_trust
from kneo import registry
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError
from kneo.store import audit, releases, sources
from kneo.store.engine import Store, Tx
from kneo.store.requests import ControllerRequest
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot


@dataclass
class CommitCalendar:
    """Since when environments served what they serve, by the dates of the commits that were replayed so far.

    Args:
        now: No commit is taken to be later than this.
    """

    now: datetime
    _at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    _since: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def begin(self, commit: SourceSnapshot, following: SourceSnapshot | None) -> CommitTimes:
        """Come to a commit.

        Args:
            commit: It.
            following: The one after it; None for the newest.
        """
        self._at = max(self._at, self._date(commit))
        until = max(self._at, self._date(following)) if following is not None else self.now
        return CommitTimes(since=dict(self._since), at=self._at, until=until)

    def end(self, after: Served) -> None:
        """Note what is served now."""
        self._since = {
            (environment, release.digest): self._since.get((environment, release.digest), self._at)
            for environment, served in after.items()
            for release in served.values()
        }

    def _date(self, commit: SourceSnapshot) -> datetime:
        # A commit without a readable date is as late as can be: nothing was served for long because of it.
        if commit.committed_at is None:
            return self.now
        return min(self.now, datetime.fromtimestamp(commit.committed_at, UTC))


log = logging.getLogger("kneo.controller")

Found = TypeVar("Found")


@dataclass(frozen=True)
class ReconcileResult:
    """How one pass ended, environment by environment."""

    revision: str
    outcomes: Mapping[str, Outcome]
    problem: SourceProblem | None = None
    """Why the commit as a whole was not followed."""


Answer = Callable[[ControllerRequest, Lease], Mapping[str, object]]
"""Does what somebody asked for in a request row."""


class Reconciler:
    """Everything a pass needs: where the commits are, what is believed first, where releases go.

    Args:
        store: The registry's database.
        mirror: Where the commits are.
        pin: Digest of the first trust root that is believed.
        service_key: The key that our own service signs decisions with; None believes no decision it recorded.
        hmac_key: The shared secret of bundles in the older format, where an environment accepts them.
        channels: Where people are told what happens.
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
        self.pin = pin
        self.service_key = service_key
        self.hmac_key = hmac_key
        self.commit: str | None = None
        """The commit that the last whole pass was about."""

        self.environments = EnvironmentReconciler(store, service_key, channels)
        self._follower = SourceTracker(store, mirror)
        self._loader = Loader()
        self._ledger = RegistryCache()

    def reconcile(self, lease: Lease) -> ReconcileResult:
        """Bring the registry to what the newest commit declares, as far as trust and gates allow.

        Raises:
            Transient: the repository or the database did not answer; try again. Nothing was half done.
            Invalid: the repository itself cannot be followed (``HistoryRewritten``, ``LimitExceeded``, …). Recorded
                in every environment's conditions; what is served stays served.
        """
        self.commit = None
        if self.drift_due():
            self._ledger.forget()
        snapshot = self._guarded(lease, lambda: self._follower.fetch(self._accepted_root))
        earlier = self._guarded(lease, lambda: self._follower.replayed(snapshot))
        if earlier or self._rebuilding():
            done = self._rebuild([*earlier, snapshot], lease)
        else:
            done, _ = self._follow(snapshot, lease)
        if not isinstance(done.problem, SourceProblem):
            self.commit = snapshot.commit
        return done

    def _rebuild(self, commits: Sequence[SourceSnapshot], lease: Lease) -> ReconcileResult:
        """Follow commit after commit into an empty registry."""
        log.info("rebuilding the registry from %d commits", len(commits))
        with self.store.write() as tx:
            check_lease(tx, lease)
            sources.begin_rebuild(tx, self.mirror.address.url, self.mirror.ref)
        calendar = CommitCalendar(self.store.clock.now())
        try:
            for commit, following in zip(commits, [*commits[1:], None], strict=True):
                done, after = self._follow(
                    commit, lease, calendar.begin(commit, following), quiet=following is not None
                )
                calendar.end(after)
        except Invalid:
            # Here somebody who followed would have stopped as well.
            self._end_rebuild(lease)
            raise
        self._end_rebuild(lease)
        return done

    def _rebuilding(self) -> bool:
        with self.store.read() as tx:
            return sources.is_rebuilding(tx)

    def _end_rebuild(self, lease: Lease) -> None:
        with self.store.write() as tx:
            check_lease(tx, lease)
            sources.end_rebuild(tx)

    def _follow(
        self, snapshot: SourceSnapshot, lease: Lease, dated: CommitTimes | None = None, *, quiet: bool = False
    ) -> tuple[ReconcileResult, Served]:
        """Bring the registry to what one commit declares; say how that ended and what is served then."""
        self._guarded(lease, lambda: self._follower.check_signed(snapshot, self._accepted_root))
        declared = self._guarded(lease, lambda: self._loader.load(snapshot))
        with self.store.read() as tx:
            observed = read_registry(tx, self._ledger.look(tx, lease.fence))
        trust = self._trust(declared, observed)
        self._accept(snapshot, declared, trust, lease, last=not quiet)
        if isinstance(trust, SourceProblem):
            audit.seal(self.store)
            stalled = Stalled(trust.reason, trust.message)
            return ReconcileResult(
                declared.revision, dict.fromkeys(declared.environments, stalled), trust
            ), observed.served
        metrics.ROOT_EXPIRY.set(trust.root.expires.timestamp())
        threshold = root_threshold(trust.root)
        files = environment_files(observed.records, declared.environments, declared.revision, threshold)
        situation = ReconcileContext(snapshot, declared, trust, lease, observed, self._ledger, files, dated, quiet)
        outcomes = self._each_environment(situation)
        audit.seal(self.store)
        with self.store.read() as tx:
            return ReconcileResult(declared.revision, outcomes), self._ledger.look(tx, lease.fence).served

    @property
    def answers(self) -> Mapping[str, Answer]:
        """What somebody may ask for beside a look."""
        # Made anew each time: kept, it would hold us in a circle, and with us the process that reads the mirror.
        return {"rollback": self._roll_back, "plan": self._preview}

    def is_current(self) -> bool:
        """Say whether the ref still names the commit that the last whole pass was about.

        Raises:
            Transient, Invalid: see ``Mirror.poll``.
        """
        return self.commit is not None and self._follower.poll() == self.commit

    def drift_due(self) -> bool:
        """Say whether it is time to look again at what is served, commit or not."""
        return self.environments.drift.due(self.store.clock.now())

    def _roll_back(self, request: ControllerRequest, lease: Lease) -> Mapping[str, object]:
        going = parse_rollback(request.payload, request.actor)
        # It changes what is served without the ledger being told.
        self._ledger.forget()
        channels = self.environments.channels
        return roll_back(self.store, going, lease, self.pin, self.service_key, self.hmac_key, channels)

    def _preview(self, request: ControllerRequest, _lease: Lease) -> Mapping[str, object]:
        ref, name = request.payload.get("ref"), request.payload.get("environment")
        snapshot = self.mirror.peek(str(ref)) if ref else self.mirror.fetch()
        with self.store.read() as tx:
            believed = TrustConfig(self.pin, self.service_key, self.hmac_key)
            return preview(tx, snapshot, self.mirror, believed, str(name) if name else None)

    def _guarded(self, lease: Lease, look: Callable[[], Found]) -> Found:
        """Look at the repository, and report everywhere why it cannot be followed, where it cannot."""
        try:
            return look()
        except Invalid as error:
            if error.code in UNREACHABLE:
                raise
            with self.store.write() as tx:
                check_lease(tx, lease)
                self._follower.refuse(tx, error)
                _report_everywhere(tx, SourceProblem(error.code, str(error)))
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
        """Follow the commit and believe the trust roots it brings, or say why not."""
        with self.store.write() as tx:
            check_lease(tx, lease)
            if isinstance(trust, SourceProblem):
                self._follower.refuse(tx, Invalid(trust.message, code=trust.reason, new=snapshot.commit))
                _report_everywhere(tx, trust, declared)
            else:
                (self._follower.accept if last else self._follower.accept_earlier)(tx, snapshot)
                registry.accept_roots(tx, declared.roots, revision=declared.revision)

    def _trust(self, declared: DeclaredState, observed: RegistryState) -> TrustContext | SourceProblem:
        now = self.store.clock.now()
        accepted = tuple(envelope for _, envelope in observed.roots)
        root = verify_trust(self.pin, declared, accepted, now, rebuilding=self._rebuilding())
        if isinstance(root, SourceProblem):
            return root
        earlier = [envelope for revision, envelope in observed.roots if revision != declared.revision]
        return TrustContext(
            root=root, before=root_before(self.pin, earlier, root, now), hmac_key=self.hmac_key, now=now
        )

    def _accepted_root(self) -> TrustRoot | None:
        with self.store.read() as tx:
            try:
                return registry.trust_root(tx, self.pin)
            except KneoError:
                return None

    def _each_environment(self, situation: ReconcileContext) -> dict[str, Outcome]:
        declared, outcomes = situation.declared, dict[str, Outcome]()
        for name in in_order(declared.environments):
            environment = declared.environments[name]
            if isinstance(environment, SourceProblem):
                outcomes[name] = self.environments.refuse(name, environment, situation)
            else:
                outcomes[name] = self.environments.run(environment, situation)
        for name in sorted(set(situation.observed.names) - set(declared.environments)):
            if is_retired(situation.observed.records.get(name), situation.observed.served):
                outcomes[name] = Ready(0)
                continue
            with self.store.read() as tx:
                problem = removed(name, declared.revision, registry.open_tasks(tx, name))
            outcomes[name] = self.environments.refuse(name, problem, situation)
        return outcomes


def _report_everywhere(tx: Tx, problem: SourceProblem, declared: DeclaredState | None = None) -> None:
    revision = declared.revision if declared else "unknown"
    names = set(declared.environments) if declared else set()
    for name in sorted(names | set(releases.environment_names(tx))):
        write_report(tx, name, report_problem(problem, revision, trusted=False), revision=revision)
