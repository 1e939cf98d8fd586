"""What a commit would change against another one, where there is no registry to ask: for pull requests.

Needs neither service nor secret: what the commits up to the base name, where it verifies, stands for what is served. A
release that a commit broke stays what it was before, as the controller leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller.approvals import committed_records, count_votes, role_members
from controller.stages.candidate import Candidate, Standing, standing_of
from controller.stages.gates import Evidence
from controller.stages.load import Declared, Loader, Problem, find_bundles
from controller.registry_state import Believed, Observed, Served
from controller.preview import Believing, Json, World, believe, tell
from controller.source.commit import Commit
from controller.source.snapshot import SourceSnapshot
from controller.stages.verify import Trust, history_of, verify
from kneo.clock import isoformat
from kneo.digest import Digest
from kneo.records.release import BundleRecord, EnvironmentRecord, Hold, Release, Suspension
from kneo.registry import OpenTasks, spec_in
from kneo.spec.environment import Environment

Since = Callable[[str, str], Iterable[Commit]]
"""Reads the commits that a branch grew by from one to another."""


@dataclass(frozen=True)
class Live:
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
    believing: Believing,
    only: str | None,
    now: datetime,
    live: Live | None = None,
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
    live = live or Live()
    past = Past(believing, now)
    for commit in followed:
        past.follow(commit)
    served = {**past.served, **live.served}
    records = past.records | {
        name: past.files[name, digest] for name, digest in live.rules.items() if (name, digest) in past.files
    }
    base = followed[-1].commit if followed else None
    world = World(
        observed=Observed(tuple(records), records, served, history_of(past.accepted.values()), past.roots),
        gather=lambda files, ballots, believed, _: _evidence_of(files, ballots, believed, served, past, live),
        spec_of=lambda digest: spec_in(past.accepted[digest]) if digest in past.accepted else None,
        now=now,
        commits=lambda: since(base, snapshot.commit) if base is not None else (),
        open_in=open_in,
    )
    return tell(snapshot, world, believing, only)


class Past:
    """What a controller would serve that followed commits whose gates were all open, in memory."""

    def __init__(self, believing: Believing, now: datetime) -> None:
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
        self._judged: dict[tuple[str, str, Digest], Standing] = {}

    def follow(self, commit: SourceSnapshot) -> None:
        """Come to the next commit; what of it cannot be used changes nothing."""
        declared = self._loader.load(commit)
        trust = believe(declared, self._world(), self.believing)
        if isinstance(trust, Problem):
            return
        self.roots = tuple(("base", envelope) for envelope in declared.roots)
        for name, environment in declared.environments.items():
            if isinstance(environment, Environment):
                self._environment(name, environment, commit, declared, replace(trust, before=None))

    def _world(self) -> World:
        observed = Observed((), {}, {}, history_of(()), self.roots)
        return World(
            observed=observed,
            gather=lambda *_: Evidence(now=self.now, served={}),
            spec_of=lambda _: None,
            now=self.now,
        )

    def _environment(
        self, name: str, environment: Environment, commit: SourceSnapshot, declared: Declared, trust: Trust
    ) -> None:
        here = self.served.setdefault(name, {})
        places, epoch = find_bundles(environment, declared.blobs), trust.epoch(environment)
        known = {
            bundle: self._judged[name, declared.blobs[path], epoch]
            for bundle, path in places.items()
            if (name, declared.blobs[path], epoch) in self._judged
        }
        envelopes = commit.read(path for bundle, path in places.items() if bundle not in known)
        history = history_of(self.accepted.values())
        verified = verify((environment,), declared, envelopes, trust, history, known)
        for bundle, item in verified.desired.items():
            standing = standing_of(item) if isinstance(item, Candidate) else item
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


def release_of(bundle: Candidate | Standing, environment: str, revision: str, now: datetime) -> Release:
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
    files: Sequence[Environment], ballots: Sequence[bytes], believed: Believed, served: Served, past: Past, live: Live
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
