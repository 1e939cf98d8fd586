"""What a commit would change against another one, where there is no registry to ask: for pull requests.

Needs neither service nor secret: what the base names, where it verifies, stands for what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from controller.approvals import committed_records, count_votes, role_members
from controller.candidate import Candidate
from controller.gates import Evidence
from controller.load import Problem, load
from controller.observe import Believed, Observed, Served
from controller.preview import Believing, Json, World, believe, tell, verify_all
from controller.source.commit import Commit
from controller.source.snapshot import SourceSnapshot
from controller.verify import history_of
from kneo.clock import isoformat
from kneo.registry import spec_in
from kneo.spec.environment import Environment
from kneo.state.release import BundleRecord, EnvironmentRecord, Release

Since = Callable[[str, str], Iterable[Commit]]
"""Reads the commits that a branch grew by from one to another."""


def compare(
    snapshot: SourceSnapshot,
    base: SourceSnapshot | None,
    since: Since,
    believing: Believing,
    only: str | None,
    now: datetime,
) -> Json:
    """Say what a commit would change against another one, or against nothing."""
    served, accepted = _as_if_served(base, believing, now) if base is not None else ({}, {})
    records = _as_if_accepted(base) if base is not None else {}
    roots = tuple(("base", envelope) for envelope in load(base).roots) if base is not None else ()
    history = history_of(accepted.values())
    world = World(
        observed=Observed(tuple(records), records, served, history, roots),
        gather=lambda files, ballots, believed, _: _evidence_of(files, ballots, believed, served),
        spec_of=lambda digest: spec_in(accepted[digest]) if digest in accepted else None,
        now=now,
        commits=lambda: since(base.commit, snapshot.commit) if base is not None else (),
    )
    return tell(snapshot, world, believing, only)


def _as_if_accepted(base: SourceSnapshot) -> dict[str, EnvironmentRecord]:
    declared = load(base)
    return {
        name: EnvironmentRecord(
            name=name,
            declaration=declared.files[name],
            policy_digest=environment.policy_digest,
            revision=declared.revision,
            pending=(),
            updated_at="",
        )
        for name, environment in declared.environments.items()
        if isinstance(environment, Environment)
    }


def _as_if_served(base: SourceSnapshot, believing: Believing, now: datetime) -> tuple[Served, dict[str, BundleRecord]]:
    declared = load(base)
    nothing = Observed((), {}, {}, history_of(()), ())
    world = World(observed=nothing, gather=lambda *_: Evidence(now=now, served={}), spec_of=lambda _: None, now=now)
    trust = believe(declared, world, believing)
    served: dict[str, dict[str, Release]] = {}
    accepted: dict[str, BundleRecord] = {}
    if isinstance(trust, Problem):
        return served, accepted
    for name, environment in declared.environments.items():
        if not isinstance(environment, Environment):
            continue
        verified = verify_all((environment,), base, declared, trust, world)
        for bundle in verified.desired.values():
            if isinstance(bundle, Candidate):
                served.setdefault(name, {})[bundle.name] = _release(bundle, name, base.revision, now)
                accepted[bundle.digest] = replace(bundle.record, first_seen_at=isoformat(now))
    return served, accepted


def _release(bundle: Candidate, environment: str, revision: str, now: datetime) -> Release:
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
    files: Sequence[Environment], ballots: Sequence[bytes], believed: Believed, served: Served
) -> Evidence:
    name = files[0].name
    records = [item for item in committed_records(ballots, believed.root, {}, believed.now) if item.environment == name]
    return Evidence(
        now=believed.now,
        served=served,
        votes=count_votes(records, name, believed.root, None, believed.now),
        members=role_members(believed.root, believed.now),
        root_expires=believed.root.expires,
    )
