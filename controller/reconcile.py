"""One pass: a commit in, an environment's releases and conditions out. Reads as the list of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.apply import Lease, apply, check_lease, write_report
from controller.gates import Allowed, Evidence, Waits, judge
from controller.load import Declared, Problem, load
from controller.outcome import Outcome, Stalled
from controller.plan import Action, make_plan
from controller.report import Report, report, report_problem
from controller.source.mirror import Mirror
from controller.verify import History, Verified, history_of, verify, verify_trust
from kneo import registry
from kneo.digest import Digest
from kneo.errors import Invalid
from kneo.spec.environment import Environment
from kneo.state.release import Release
from kneo.store import audit, releases
from kneo.store.engine import Store
from kneo.trust.root import TrustRoot


@dataclass(frozen=True)
class Observed:
    """What the registry holds at the start of a pass."""

    names: tuple[str, ...]
    served: Mapping[str, Mapping[str, Release]]
    history: History
    roots: tuple[bytes, ...]


@dataclass(frozen=True)
class Pass:
    """How one pass ended, environment by environment."""

    revision: str
    outcomes: Mapping[str, Outcome]


class Reconciler:
    """Everything a pass needs: where the commits are, what is believed first, where releases go."""

    def __init__(self, store: Store, mirror: Mirror, pin: Digest) -> None:
        self.store = store
        self.mirror = mirror
        self.pin = pin

    def reconcile(self, lease: Lease) -> Pass:
        """Bring the registry to what the newest commit declares, as far as trust and gates allow.

        Raises:
            Transient: the repository or the database did not answer; try again. Nothing was half done.
            Invalid: the repository itself cannot be followed (``HistoryRewritten``, ``LimitExceeded``, …). Recorded
                in every environment's conditions; what is served stays served.
        """
        try:
            snapshot = self.mirror.fetch()
            declared = load(snapshot)
        except Invalid as error:
            self._report_everywhere(Problem(error.code, str(error)), lease)
            raise
        self.mirror.accept(snapshot)
        now = self.store.clock.now()
        observed = self._observe()
        root = verify_trust(self.pin, declared, observed.roots, now)
        if isinstance(root, Problem):
            self._report_everywhere(root, lease, declared)
            return Pass(declared.revision, dict.fromkeys(declared.environments, Stalled(root.reason, root.message)))
        self._accept_roots(declared, lease)
        outcomes = {}
        for name in sorted(declared.environments):
            outcomes[name] = self._reconcile_environment(name, declared, root, lease, now)
        for name in sorted(set(observed.names) - set(declared.environments)):
            problem = Problem("EnvironmentRemoved", f"environments/{name}.yaml is not in {declared.revision}.")
            outcomes[name] = self._write_problem(name, problem, declared.revision, lease)
        audit.seal(self.store)
        return Pass(declared.revision, outcomes)

    def _reconcile_environment(
        self, name: str, declared: Declared, root: TrustRoot, lease: Lease, now: datetime
    ) -> Outcome:
        environment = declared.environments[name]
        if isinstance(environment, Problem):
            return self._write_problem(name, environment, declared.revision, lease)
        observed = self._observe()
        verified = verify(environment, declared, root, observed.history, now)
        found = self._plan(environment, declared.revision, verified, observed, now)
        with self.store.write() as tx:
            check_lease(tx, lease)
            apply(
                tx,
                environment,
                declared.files[name],
                found.allowed,
                observed.served.get(name, {}),
                found.report,
                revision=declared.revision,
            )
        return found.report.outcome

    def _plan(
        self, environment: Environment, revision: str, verified: Verified, observed: Observed, now: datetime
    ) -> _Found:
        name = environment.name
        plan = make_plan(
            name,
            revision,
            desired=verified.desired,
            kept={rejection.bundle for rejection in verified.rejected},
            observed=observed.served.get(name, {}),
            high_water=observed.history.high_water,
        )
        judged = judge(
            plan,
            environment,
            Evidence(now=now, served=observed.served, approvals={}),
            refused=verified.rejected[0].message if verified.rejected else None,
        )
        allowed = tuple(action for action, verdict in judged if isinstance(verdict, Allowed))
        waiting = [(action, verdict) for action, verdict in judged if isinstance(verdict, Waits)]
        served = len(environment.spec.releases)
        return _Found(allowed, report(revision, verified.rejected, waiting, len(allowed), served))

    def _observe(self) -> Observed:
        with self.store.read() as tx:
            served: dict[str, dict[str, Release]] = {}
            for release in releases.list_releases(tx):
                served.setdefault(release.environment, {})[release.bundle] = release
            roots = tuple(envelope for _, _, envelope in releases.trust_chain(tx))
            names = releases.environment_names(tx)
            return Observed(names, served, history_of(releases.known_bundles(tx)), roots)

    def _accept_roots(self, declared: Declared, lease: Lease) -> None:
        with self.store.write() as tx:
            check_lease(tx, lease)
            registry.accept_roots(tx, declared.roots, revision=declared.revision)

    def _report_everywhere(self, problem: Problem, lease: Lease, declared: Declared | None = None) -> None:
        revision = declared.revision if declared else "unknown"
        names = set(declared.environments) if declared else set()
        with self.store.write() as tx:
            check_lease(tx, lease)
            for name in sorted(names | set(releases.environment_names(tx))):
                write_report(tx, name, report_problem(problem, revision, trusted=False), revision=revision)
        audit.seal(self.store)

    def _write_problem(self, name: str, problem: Problem, revision: str, lease: Lease) -> Outcome:
        found = report_problem(problem, revision, trusted=True)
        with self.store.write() as tx:
            check_lease(tx, lease)
            write_report(tx, name, found, revision=revision)
        return found.outcome


@dataclass(frozen=True)
class _Found:
    allowed: tuple[Action, ...]
    report: Report
