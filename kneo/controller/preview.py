"""The preview of a commit: what a reconciliation would change, as JSON, without changing anything.

``preview`` compares a commit with the registry. ``compare`` compares it with the releases of earlier commits, for pull requests:
it needs neither service nor secret. The verified releases of the commits up to the base stand for the registry; a release
that a commit broke stays, as the controller leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from kneo.clock import isoformat
from kneo.controller.differences import policy_difference, window_state
from kneo.controller.policy_gate import (
    environment_files,
    evaluate_policy_gate,
    is_retired,
    pending_bundles,
    root_threshold,
    rules_before,
)
from kneo.controller.registry_cache import RegistryState, Served, read_registry
from kneo.controller.source.mirror import Mirror
from kneo.controller.source.snapshot import Commit, SourceSnapshot
from kneo.controller.source_tracker import check_history
from kneo.controller.stages import verify
from kneo.controller.stages.approvals import committed_records, count_votes, role_members
from kneo.controller.stages.attestations import (
    StatedFacts,
    by_bundle,
    makers_of,
    read_attestations,
    verify_attestation,
)
from kneo.controller.stages.evidence import gather_evidence, stated_facts
from kneo.controller.stages.gates import Allowed, Blocked, Evidence, GateVerdict, evaluate_gates, rules_of, weakened
from kneo.controller.stages.load import (
    DeclaredState,
    Loader,
    SourceProblem,
    failure,
    find_bundles,
    in_order,
    load,
    removed,
)
from kneo.controller.stages.plan import Action, Retire, kind_of, make_plan, name_of
from kneo.controller.stages.report import further_gates, outdated_approvals
from kneo.controller.trust_difference import trust_difference
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError, Transient
from kneo.records.grant import Grant
from kneo.records.release import BundleRecord, EnvironmentRecord, Hold, Release, Suspension, also_closed
from kneo.registry import OpenTasks, code_in, open_tasks, spec_in
from kneo.spec.coverage.calls import call_coverage, find_rule_flaws, served_calls
from kneo.spec.coverage.environment_gates import guarded_steps
from kneo.spec.diff import compare_specs, whole_command
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import Environment, EnvironmentGate, with_gates
from kneo.spec.reading.load import load_tree
from kneo.store import grants, releases, requests
from kneo.store.engine import Tx

Json = dict[str, object]
Spec = Mapping[str, object]
Releases = dict[str, dict[str, Release]]


@dataclass(frozen=True, kw_only=True)
class CommitEvidence:
    """The part of a commit from which the evidence for the gates of an environment is gathered.

    Args:
        files: The environment's file, then the one in force before it, where that has other rules.
        approval_files: Approvals in the commit.
        attestation_files: Attestations in the commit about versions that the environment declares or serves.
        trust: The trust of this preview.
        candidates: Digests of the bundles that may be released.
    """

    files: Sequence[Environment]
    approval_files: Sequence[bytes]
    attestation_files: Sequence[bytes]
    trust: verify.TrustContext
    candidates: Collection[str]

    @property
    def name(self) -> str:
        return self.files[0].name


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """The state that a commit is compared with.

    Args:
        state: The registry.
        gather: Returns the evidence for gates.
        released: Returns the digests among some that an environment released before.
        bundle_of: Returns a released bundle, by digest.
        now: The time of the preview.
        commits: Reads the commits since the accepted one, where the trust root requires signed commits.
        open_in: Returns the open tasks of an environment; None where they are unknown.
        active_grants: Returns the active standing grants for a bundle of an environment; none where they are unknown.
    """

    state: RegistryState
    gather: Callable[[CommitEvidence], Evidence]
    released: Callable[[str, Collection[str]], Collection[str]]
    bundle_of: Callable[[str], BundleRecord | None]
    now: datetime
    commits: Callable[[], Iterable[Commit]] = tuple
    open_in: Callable[[str], OpenTasks | None] = lambda _: None
    active_grants: Callable[[str, str], Sequence[Grant]] = lambda _environment, _bundle: ()


def preview(tx: Tx, snapshot: SourceSnapshot, mirror: Mirror, config: verify.TrustConfig, only: str | None) -> Json:
    """Describe what the controller would change with a commit now."""
    state, source = read_registry(tx), requests.source(tx)
    accepted = source.accepted_commit if source else None
    inputs = PlanInputs(
        state=state,
        gather=lambda commit: _recorded_evidence(tx, commit, state.served),
        released=lambda name, digests: releases.served_before(tx, name, digests),
        bundle_of=lambda digest: releases.bundle(tx, digest),
        now=tx.now,
        commits=lambda: mirror.since(accepted, snapshot.commit) if accepted else (),
        open_in=lambda name: open_tasks(tx, name),
        active_grants=lambda name, bundle: grants.list_grants(
            tx, environment=name, bundle=bundle, status="active", unexpired=True
        ),
    )
    return describe_plan(snapshot, inputs, config, only)


def _recorded_evidence(tx: Tx, commit: CommitEvidence, served: Served) -> Evidence:
    here = served.get(commit.name, {})
    stated = stated_facts(tx, commit.files, commit.trust, here, commit.candidates, commit.attestation_files)
    return gather_evidence(tx, commit.files, commit.approval_files, commit.trust, served, commit.candidates, stated)


def describe_plan(snapshot: SourceSnapshot, inputs: PlanInputs, config: verify.TrustConfig, only: str | None) -> Json:
    """Evaluate a commit as the controller does, and describe the result."""
    declared, state = load(snapshot), inputs.state
    earlier = verify.earlier_roots(state.roots, declared.revision)
    files = [item for item in declared.environments.values() if isinstance(item, Environment)]
    roots = trust_difference(earlier[-1] if earlier else None, declared.roots[-1] if declared.roots else None, files)
    result: Json = {
        "ref": snapshot.ref,
        "revision": snapshot.revision,
        "commits": _commits(inputs, config, earlier),
        "trust": roots | {"version": roots["to"], "changed": roots["from"] != roots["to"]},
    }
    trust = verify.establish_trust(config, declared, state.roots, inputs.now)
    if isinstance(trust, SourceProblem):
        return result | {"problem": {"reason": trust.reason, "message": trust.message}, "environments": []}
    served = {name: dict(here) for name, here in state.served.items()}
    described: dict[str, Json] = {}
    for name in in_order(declared.environments):
        try:
            described[name] = _environment(name, snapshot, declared, trust, inputs, served)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - logged, and the problem of this environment alone
            described[name] = _unchanged(name, failure(f"The plan of {name}", error))
    gone = [
        name
        for name in sorted(set(state.names) - set(declared.environments))
        if only in {None, name} and not is_retired(state.records.get(name), state.served)
    ]
    return result | {
        "environments": [
            *(described[name] for name in sorted(described) if only in {None, name}),
            *(_removed(name, declared.revision, inputs.open_in(name)) for name in gone),
        ],
    }


def _commits(inputs: PlanInputs, config: verify.TrustConfig, earlier: Sequence[bytes]) -> Json | None:
    """Describe whether the commits are signed as the trust root requires; None where it does not."""
    root = verify.root_in_force(config.pin, earlier, inputs.now)
    try:
        required = check_history(inputs.commits, root, inputs.now)
    except Invalid as error:
        return {"ok": False, "reason": error.code, "message": str(error)}
    return {"ok": True, "reason": "Verified", "message": ""} if required else None


def _removed(name: str, revision: str, open_: OpenTasks | None) -> Json:
    """Describe an environment whose file a commit removes."""
    problem = removed(name, revision, open_ or "Open tasks there can still be answered.")
    return _unchanged(name, problem) | {"removed": True, "open_tasks": open_.as_json() if open_ is not None else None}


def _environment(
    name: str,
    snapshot: SourceSnapshot,
    declared: DeclaredState,
    trust: verify.TrustContext,
    inputs: PlanInputs,
    served: Releases,
) -> Json:
    """Evaluate one environment, and update its releases in ``served``: another environment may promote from it."""
    environment, state = declared.environments[name], inputs.state
    if isinstance(environment, SourceProblem):
        return _unchanged(name, environment)
    record = state.records.get(name)
    before = rules_before(record, environment, declared.revision)
    if isinstance(before, SourceProblem):
        return _unchanged(name, before)
    files = (environment, before) if before else (environment,)
    places = find_bundles(environment, declared.blobs)
    envelopes = snapshot.read(places.values())
    released = inputs.released(name, verify.known_digests(state.history, places))
    verified = verify.verify(files, declared, envelopes, trust, state.history, {}, pending_bundles(record), released)
    attestations = declared.evidence_paths(environment, state.served.get(name, {}).values())
    commit = CommitEvidence(
        files=files,
        approval_files=declared.approval_files.get(name, ()),
        attestation_files=tuple(snapshot.read(attestations).values()),
        trust=trust,
        candidates=verified.candidates,
    )
    evidence = replace(inputs.gather(commit), served=served)
    plan = make_plan(environment, declared.revision, verified, served.get(name, {}), state.history.known)
    rules = _evaluate_file(environment, before, declared, trust, state, evidence)
    approved = isinstance(rules, Allowed) and bool(rules.approvals)
    both = rules_of(environment, before, approved=approved)
    verdicts = evaluate_gates(plan, both, evidence, refused=verified.refusal)
    if isinstance(rules, Allowed):
        _apply(verdicts, name, served.setdefault(name, {}), declared.revision, inputs.now)
    gates = [_gate(name_of(a), v) for a, v in verdicts if isinstance(v, Blocked)]
    return {
        "name": name,
        "actions": [_action(a, rules if isinstance(rules, Blocked) else v, environment, inputs) for a, v in verdicts],
        "verdicts": _verdicts(verified),
        "gates": [*([_gate(environment.file, rules)] if isinstance(rules, Blocked) else ()), *gates],
        "rules": {"changed": before is not None, "easier": list(weakened(environment, before, evidence))},
        "policy": policy_difference(before, environment) if before else [],
        "windows": window_state(environment, inputs.now),
        "retired": environment.spec.retired,
        "open_tasks": open_.as_json() if environment.spec.retired and (open_ := inputs.open_in(name)) else None,
        "new": record is None,
        "added_gates": [_added(gate, verified) for gate in environment.gates],
        **_calls(environment, verified, inputs),
    }


def _evaluate_file(
    environment: Environment,
    before: Environment | None,
    declared: DeclaredState,
    trust: verify.TrustContext,
    state: RegistryState,
    evidence: Evidence,
) -> GateVerdict:
    if before is None and environment.name in state.records:
        return Allowed()
    files = environment_files(state.records, declared.environments, declared.revision, root_threshold(trust.root))
    return evaluate_policy_gate(environment, before, files, evidence)


def _apply(
    verdicts: Iterable[tuple[Action, GateVerdict]], name: str, here: dict[str, Release], revision: str, now: datetime
) -> None:
    for action, verdict in verdicts:
        if not isinstance(verdict, Allowed):
            continue
        if isinstance(action, Retire):
            del here[name_of(action)]
        else:
            here[action.bundle.name] = planned_release(action.bundle, name, revision, now)


def planned_release(
    bundle: verify.Candidate | verify.UnchangedBundle, environment: str, revision: str, now: datetime
) -> Release:
    """Return the release of a bundle as it would be."""
    return Release(
        environment=environment,
        bundle=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        revision=revision,
        promotion_id="",
        since=isoformat(now),
    )


def _added(gate: EnvironmentGate, verified: verify.Verified) -> Json:
    """Describe the steps of each candidate that a gate of the environment is added around."""
    views = {
        name: _view(spec_in(bundle.record), gate)
        for name, bundle in verified.desired.items()
        if isinstance(bundle, verify.Candidate)
    }
    steps = {name: places for name, view in views.items() if (places := guarded_steps(view, gate.name))}
    return {"gate": gate.name, "steps": steps}


def _calls(environment: Environment, verified: verify.Verified, inputs: PlanInputs) -> Json:
    """Describe the coverage of privileged calls, the tools that other programs may call, and expressions that no call satisfies."""
    calls: list[Json] = []
    served: list[Json] = []
    warnings: list[str] = []
    for name, bundle in verified.desired.items():
        spec = (
            spec_in(bundle.record)
            if isinstance(bundle, verify.Candidate)
            else _spec_of(inputs.bundle_of(bundle.digest))
        )
        if spec is None:
            continue
        index = _view(spec, *environment.gates)
        calls += [{"bundle": name, **each.as_json()} for each in call_coverage(index, environment.spec.tools)]
        served += [{"bundle": name, **each.as_json()} for each in served_calls(index, name, environment.spec)]
        warnings += [f"{name}: {flaw}" for flaw in find_rule_flaws(index, environment.spec)]
    return {"calls": calls, "served_calls": served, "warnings": warnings}


def _view(spec: Spec, *gates: EnvironmentGate) -> SpecIndex:
    loaded = load_tree(dict(spec)).spec
    assert loaded is not None, "the spec of a candidate was verified"
    return SpecIndex.of(with_gates(loaded, gates))


def _unchanged(name: str, problem: SourceProblem) -> Json:
    reason = {"reason": problem.reason, "message": problem.message}
    return {"name": name, "problem": reason, "actions": [], "verdicts": [], "gates": []}


def _action(action: Action, verdict: GateVerdict, environment: Environment, inputs: PlanInputs) -> Json:
    bundle = None if isinstance(action, Retire) else action.bundle
    old = inputs.bundle_of(action.current.digest) if action.current is not None else None
    served = action.current.version if action.current is not None else None
    command = whole_command(name_of(action), served, bundle.version) if bundle is not None else None
    found = (
        compare_specs(
            _spec_of(old),
            spec_in(bundle.record),
            environment=environment,
            command=command or "",
            code=(code_in(old), code_in(bundle.record)),
        )
        if bundle
        else None
    )
    return {
        "kind": kind_of(action).value,
        "bundle": name_of(action),
        "from": served,
        "to": bundle.version if bundle else None,
        "digest": bundle.digest if bundle else None,
        "signers": list(bundle.record.signers) if bundle else [],
        "allowed": isinstance(verdict, Allowed),
        "diff": found.items(whole=True) if found is not None else [],
        "ends_grants": [
            grant.id
            for grant in inputs.active_grants(environment.name, name_of(action))
            if bundle is None or grant.digest != bundle.digest
        ],
        "whole": command,
    }


def _gate(subject: str, verdict: Blocked) -> Json:
    return {
        "bundle": subject,
        "gate": verdict.gate,
        "reason": verdict.reason,
        "message": verdict.message + also_closed(further_gates(verdict)),
        "who": list(verdict.who),
        "outdated_approvals": [asdict(item) for item in outdated_approvals(verdict)],
    }


def _verdicts(verified: verify.Verified) -> list[Json]:
    rejected = [
        {"bundle": item.bundle, "version": item.version, "ok": False, "reason": item.reason, "message": item.message}
        for item in verified.rejected
    ]
    accepted = [
        {"bundle": item.name, "version": item.version, "ok": True, "reason": "Verified", "message": ""}
        for item in verified.desired.values()
    ]
    return [*rejected, *accepted]


def _spec_of(record: BundleRecord | None) -> Spec | None:
    try:
        return spec_in(record) if record is not None else None
    except KneoError:
        return None


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
    config: verify.TrustConfig,
    only: str | None,
    now: datetime,
    live: LiveRegistry | None = None,
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
        state=RegistryState(tuple(records), records, served, verify.bundle_history(accepted.values()), simulated.roots),
        gather=lambda commit: _committed_evidence(commit, served, simulated, live),
        released=lambda name, _: simulated.before.get(name, ()),
        bundle_of=accepted.get,
        now=now,
        commits=lambda: since(base, snapshot.commit) if base is not None else (),
    )
    return describe_plan(snapshot, inputs, config, only)


class SimulatedRegistry:
    """A registry in memory: the result of reconciling commits whose gates all allow every change."""

    def __init__(self, config: verify.TrustConfig, now: datetime) -> None:
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
        self._verified: dict[tuple[str, str, Digest], verify.UnchangedBundle] = {}

    def follow(self, commit: SourceSnapshot) -> None:
        """Reconcile the next commit; unusable parts of it change nothing."""
        declared = self._loader.load(commit)
        trust = verify.establish_trust(self.config, declared, self.roots, self.now)
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
        trust: verify.TrustContext,
    ) -> None:
        here = self.served.setdefault(name, {})
        places, epoch = find_bundles(environment, declared.blobs), trust.epoch(environment)
        keys = {bundle: (name, declared.blobs[path], epoch) for bundle, path in places.items()}
        unchanged = {bundle: self._verified[key] for bundle, key in keys.items() if key in self._verified}
        envelopes = commit.read(path for bundle, path in places.items() if bundle not in unchanged)
        history = verify.bundle_history(self.accepted.values())
        verified = verify.verify((environment,), declared, envelopes, trust, history, unchanged)
        for bundle, item in verified.desired.items():
            self._verified[keys[bundle]] = verify.unchanged_bundle(item) if isinstance(item, verify.Candidate) else item
            if isinstance(item, verify.Candidate):
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


def _committed_evidence(
    commit: CommitEvidence, served: Served, simulated: SimulatedRegistry, live: LiveRegistry
) -> Evidence:
    name, trust = commit.name, commit.trust
    records = committed_records(commit.approval_files, trust.root, {}, trust.now)
    # Recorded decisions are unknown here, so none that a service signed counts.
    votes = count_votes(
        [record for record in records if record.environment == name], name, replace(trust, service_key=None)
    )
    stated = read_attestations(commit.attestation_files, trust.root, trust.now)
    return Evidence(
        now=trust.now,
        served=served,
        votes=votes,
        members=role_members(trust),
        root_expires=trust.root.expires,
        holds=live.holds.get(name, {}),
        suspension=live.suspensions.get(name),
        served_before=frozenset(simulated.before.get(name, ())),
        facts=StatedFacts(
            results=by_bundle(verify_attestation(item, trust.root) for item in stated),
            current={
                release.digest: makers_of(simulated.accepted[release.digest])
                for release in served.get(name, {}).values()
                if release.digest in simulated.accepted
            },
        ),
    )
