"""The preview of a commit without a registry: compared with the releases of earlier commits, for pull requests.

It needs neither service nor secret. The verified releases of the commits up to the base stand for the registry; a release
that a commit broke stays, as the controller leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from kneo.clock import isoformat
from kneo.controller.preview import Json, PlanInputs, describe_plan, planned_release
from kneo.controller.registry_state import RegistryState, Served
from kneo.controller.source.snapshot import Commit, SourceSnapshot
from kneo.controller.stages.approvals import committed_records, count_votes, role_members
from kneo.controller.stages.gates import Evidence
from kneo.controller.stages.load import DeclaredState, Loader, SourceProblem, find_bundles
from kneo.controller.stages.verify import (
    Candidate,
    TrustConfig,
    TrustContext,
    UnchangedBundle,
    bundle_history,
    establish_trust,
    unchanged_bundle,
    verify,
)
from kneo.digest import Digest
from kneo.records.release import BundleRecord, EnvironmentRecord, Hold, Release, Suspension
from kneo.registry import OpenTasks, spec_in
from kneo.spec.models.environment import Environment

Since = Callable[[str, str], Iterable[Commit]]
"""Reads the commits of a branch between two commits."""


@dataclass(frozen=True)
class LiveRegistry:
    """The environments of a registry, which take precedence over releases in commits."""

    served: Served = field(default_factory=dict)
    holds: Mapping[str, Mapping[str, Hold]] = field(default_factory=dict)
    suspensions: Mapping[str, Suspension] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    """Policy digests of the environment files in force."""


def compare(
    snapshot: SourceSnapshot,
    followed: Sequence[SourceSnapshot],
    since: Since,
    config: TrustConfig,
    only: str | None,
    now: datetime,
    live: LiveRegistry | None = None,
    open_in: Callable[[str], OpenTasks | None] = lambda _: None,
) -> Json:
    """Describe what a commit would change against an earlier one, or against nothing.

    Args:
        snapshot: The commit.
        followed: The commits up to the base, oldest first; empty compares with nothing.
        since: Reads the commits in between.
        config: The trust settings.
        only: The one environment to describe; None describes all.
        now: The time of the preview.
        live: The registry, where there is one.
        open_in: Returns the open tasks of an environment; None where they are unknown.
    """
    live = live or LiveRegistry()
    simulated = SimulatedRegistry(config, now)
    for commit in followed:
        simulated.follow(commit)
    served = {**simulated.served, **live.served}
    records = simulated.records | {
        name: simulated.files[name, digest] for name, digest in live.rules.items() if (name, digest) in simulated.files
    }
    base = followed[-1].commit if followed else None
    accepted = simulated.accepted
    inputs = PlanInputs(
        state=RegistryState(tuple(records), records, served, bundle_history(accepted.values()), simulated.roots),
        gather=lambda files, approvals, trust, _: _evidence(files[0].name, approvals, trust, served, simulated, live),
        spec_of=lambda digest: spec_in(accepted[digest]) if digest in accepted else None,
        now=now,
        commits=lambda: since(base, snapshot.commit) if base is not None else (),
        open_in=open_in,
    )
    return describe_plan(snapshot, inputs, config, only)


class SimulatedRegistry:
    """A registry in memory: the result of reconciling commits whose gates all allow every change."""

    def __init__(self, config: TrustConfig, now: datetime) -> None:
        self.config = config
        self.now = now
        self.records: dict[str, EnvironmentRecord] = {}
        self.served: dict[str, dict[str, Release]] = {}
        self.accepted: dict[str, BundleRecord] = {}
        self.roots: tuple[tuple[str | None, bytes], ...] = ()
        self.files: dict[tuple[str, str], EnvironmentRecord] = {}
        """Environment files by name and policy digest."""
        self.before: dict[str, set[str]] = {}
        """Digests of every release of an environment, by environment."""
        self._loader = Loader()
        self._verified: dict[tuple[str, str, Digest], UnchangedBundle] = {}

    def follow(self, commit: SourceSnapshot) -> None:
        """Reconcile the next commit; unusable parts of it change nothing."""
        declared = self._loader.load(commit)
        trust = establish_trust(self.config, declared, self.roots, self.now)
        if isinstance(trust, SourceProblem):
            return
        self.roots = tuple(("base", envelope) for envelope in declared.roots)
        for name, environment in declared.environments.items():
            if isinstance(environment, Environment):
                self._environment(name, environment, commit, declared, replace(trust, before=None))

    def _environment(
        self,
        name: str,
        environment: Environment,
        commit: SourceSnapshot,
        declared: DeclaredState,
        trust: TrustContext,
    ) -> None:
        here = self.served.setdefault(name, {})
        places, epoch = find_bundles(environment, declared.blobs), trust.epoch(environment)
        keys = {bundle: (name, declared.blobs[path], epoch) for bundle, path in places.items()}
        unchanged = {bundle: self._verified[key] for bundle, key in keys.items() if key in self._verified}
        envelopes = commit.read(path for bundle, path in places.items() if bundle not in unchanged)
        history = bundle_history(self.accepted.values())
        verified = verify((environment,), declared, envelopes, trust, history, unchanged)
        for bundle, item in verified.desired.items():
            self._verified[keys[bundle]] = unchanged_bundle(item) if isinstance(item, Candidate) else item
            if isinstance(item, Candidate):
                self.accepted.setdefault(item.digest, replace(item.record, first_seen_at=isoformat(self.now)))
            if bundle not in here or here[bundle].digest != item.digest:
                here[bundle] = planned_release(item, name, declared.revision, self.now)
            self.before.setdefault(name, set()).add(item.digest)
        declared_names = {entry.bundle for entry in environment.spec.releases}
        self.served[name] = {bundle: release for bundle, release in here.items() if bundle in declared_names}
        self.records[name] = self.files[name, environment.policy_digest] = EnvironmentRecord(
            name=name,
            declaration=declared.files[name],
            policy_digest=environment.policy_digest,
            revision=declared.revision,
            pending=(),
            updated_at="",
        )


def _evidence(
    name: str,
    approval_files: Sequence[bytes],
    trust: TrustContext,
    served: Served,
    simulated: SimulatedRegistry,
    live: LiveRegistry,
) -> Evidence:
    records = committed_records(approval_files, trust.root, {}, trust.now)
    # Recorded decisions are unknown here, so none that a service signed counts.
    votes = count_votes(
        [record for record in records if record.environment == name], name, replace(trust, service_key=None)
    )
    return Evidence(
        now=trust.now,
        served=served,
        votes=votes,
        members=role_members(trust),
        root_expires=trust.root.expires,
        holds=live.holds.get(name, {}),
        suspension=live.suspensions.get(name),
        served_before=frozenset(simulated.before.get(name, ())),
    )
