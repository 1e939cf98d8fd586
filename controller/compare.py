"""What a commit would change against another one, where there is no registry to ask: for pull requests.

Needs neither service nor secret: what the commits up to the base name, where it verifies, stands for what is served. A
release that a commit broke stays what it was before, as the controller leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller.approvals import committed_records, count_votes, role_members
from controller.preview import Json, PlanInputs, TrustConfig, describe_plan, establish_trust
from controller.registry_state import DecisionTrust, RegistryState, Served
from controller.source.snapshot import Commit, SourceSnapshot
from controller.stages.gates import Evidence
from controller.stages.load import DeclaredState, Loader, SourceProblem, find_bundles
from controller.stages.verify import Candidate, TrustContext, UnchangedBundle, bundle_history, unchanged_bundle, verify
from kneo.clock import isoformat
from kneo.digest import Digest
from kneo.records.release import BundleRecord, EnvironmentRecord, Hold, Release, Suspension
from kneo.registry import OpenTasks, spec_in
from kneo.spec.models.environment import Environment

Since = Callable[[str, str], Iterable[Commit]]
"""Reads the commits that a branch grew by from one to another."""


@dataclass(frozen=True)
class LiveRegistry:
    """What a registry says of its environments, where there is one to ask: it counts more than what commits name."""

    served: Served = field(default_factory=dict)
    holds: Mapping[str, Mapping[str, Hold]] = field(default_factory=dict)
    suspensions: Mapping[str, Suspension] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    """Policy digests of the environment files in force."""


def compare(
    snapshot: SourceSnapshot,
    followed: Sequence[SourceSnapshot],
    since: Since,
    believing: TrustConfig,
    only: str | None,
    now: datetime,
    live: LiveRegistry | None = None,
    open_in: Callable[[str], OpenTasks | None] = lambda _: None,
) -> Json:
    """Say what a commit would change against another one, or against nothing.

    Args:
        snapshot: The commit.
        followed: The commits up to the one that it is compared with, oldest first; empty compares with nothing.
        since: Reads the commits in between.
        believing: What is believed.
        only: The one environment to look at; None looks at all.
        now: The time to judge at.
        live: What a registry says, where one was asked.
        open_in: Finds the questions that are open in an environment; None where nobody can be asked.
    """
    live = live or LiveRegistry()
    past = SimulatedRegistry(believing, now)
    for commit in followed:
        past.follow(commit)
    served = {**past.served, **live.served}
    records = past.records | {
        name: past.files[name, digest] for name, digest in live.rules.items() if (name, digest) in past.files
    }
    base = followed[-1].commit if followed else None
    world = PlanInputs(
        observed=RegistryState(tuple(records), records, served, bundle_history(past.accepted.values()), past.roots),
        gather=lambda files, ballots, believed, _: _evidence_of(files, ballots, believed, served, past, live),
        spec_of=lambda digest: spec_in(past.accepted[digest]) if digest in past.accepted else None,
        now=now,
        commits=lambda: since(base, snapshot.commit) if base is not None else (),
        open_in=open_in,
    )
    return describe_plan(snapshot, world, believing, only)


class SimulatedRegistry:
    """What a controller would serve that followed commits whose gates were all open, in memory."""

    def __init__(self, believing: TrustConfig, now: datetime) -> None:
        self.believing = believing
        self.now = now
        self.records: dict[str, EnvironmentRecord] = {}
        self.served: dict[str, dict[str, Release]] = {}
        self.accepted: dict[str, BundleRecord] = {}
        self.roots: tuple[tuple[str | None, bytes], ...] = ()
        self.files: dict[tuple[str, str], EnvironmentRecord] = {}
        """Environment files by name and policy digest."""
        self.before: dict[str, set[str]] = {}
        """Digests of what each environment served at any time."""
        self._loader = Loader()
        self._judged: dict[tuple[str, str, Digest], UnchangedBundle] = {}

    def follow(self, commit: SourceSnapshot) -> None:
        """Come to the next commit; what of it cannot be used changes nothing."""
        declared = self._loader.load(commit)
        trust = establish_trust(declared, self._world(), self.believing)
        if isinstance(trust, SourceProblem):
            return
        self.roots = tuple(("base", envelope) for envelope in declared.roots)
        for name, environment in declared.environments.items():
            if isinstance(environment, Environment):
                self._environment(name, environment, commit, declared, replace(trust, before=None))

    def _world(self) -> PlanInputs:
        observed = RegistryState((), {}, {}, bundle_history(()), self.roots)
        return PlanInputs(
            observed=observed,
            gather=lambda *_: Evidence(now=self.now, served={}),
            spec_of=lambda _: None,
            now=self.now,
        )

    def _environment(
        self, name: str, environment: Environment, commit: SourceSnapshot, declared: DeclaredState, trust: TrustContext
    ) -> None:
        here = self.served.setdefault(name, {})
        places, epoch = find_bundles(environment, declared.blobs), trust.epoch(environment)
        known = {
            bundle: self._judged[name, declared.blobs[path], epoch]
            for bundle, path in places.items()
            if (name, declared.blobs[path], epoch) in self._judged
        }
        envelopes = commit.read(path for bundle, path in places.items() if bundle not in known)
        history = bundle_history(self.accepted.values())
        verified = verify((environment,), declared, envelopes, trust, history, known)
        for bundle, item in verified.desired.items():
            standing = unchanged_bundle(item) if isinstance(item, Candidate) else item
            self._judged[name, declared.blobs[places[bundle]], epoch] = standing
            if isinstance(item, Candidate):
                self.accepted.setdefault(item.digest, replace(item.record, first_seen_at=isoformat(self.now)))
            if bundle not in here or here[bundle].digest != item.digest:
                here[bundle] = release_of(item, name, declared.revision, self.now)
            self.before.setdefault(name, set()).add(item.digest)
        named = {entry.bundle for entry in environment.spec.releases}
        self.served[name] = {bundle: release for bundle, release in here.items() if bundle in named}
        self.records[name] = EnvironmentRecord(
            name=name,
            declaration=declared.files[name],
            policy_digest=environment.policy_digest,
            revision=declared.revision,
            pending=(),
            updated_at="",
        )
        self.files[name, environment.policy_digest] = self.records[name]


def release_of(bundle: Candidate | UnchangedBundle, environment: str, revision: str, now: datetime) -> Release:
    """Return what would be served."""
    return Release(
        environment=environment,
        bundle=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        revision=revision,
        promotion_id="",
        since=isoformat(now),
    )


def _evidence_of(
    files: Sequence[Environment],
    ballots: Sequence[bytes],
    believed: DecisionTrust,
    served: Served,
    past: SimulatedRegistry,
    live: LiveRegistry,
) -> Evidence:
    name = files[0].name
    records = [item for item in committed_records(ballots, believed.root, {}, believed.now) if item.environment == name]
    return Evidence(
        now=believed.now,
        served=served,
        votes=count_votes(records, name, believed.root, None, believed.now),
        members=role_members(believed.root, believed.now),
        root_expires=believed.root.expires,
        holds=live.holds.get(name, {}),
        suspension=live.suspensions.get(name),
        served_before=frozenset(past.before.get(name, ())),
    )
