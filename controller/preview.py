"""What a commit would change, without changing anything: the controller's own judgement, told in words.

Against a registry it says what the controller would do now; ``compare`` does the same against another commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controller.differences import policy_difference, trust_difference, window_state
from controller.policy_gate import environment_files, evaluate_policy_gate, root_threshold
from controller.registry_state import (
    DecisionTrust,
    RegistryState,
    gather_evidence,
    is_retired,
    read_registry,
    rules_before,
)
from controller.source.mirror import Mirror
from controller.source.snapshot import Commit, SourceSnapshot
from controller.source_tracker import check_history
from controller.stages.gates import Allowed, Blocked, Evidence, GateVerdict, evaluate_gates, rules_of
from controller.stages.load import DeclaredState, SourceProblem, find_bundle, in_order, load, removed
from controller.stages.plan import Action, Retire, kind_of, make_plan, name_of
from controller.stages.report import further_gates
from controller.stages.verify import (
    Candidate,
    Rejection,
    TrustContext,
    Verified,
    root_before,
    root_in_force,
    verify,
    verify_trust,
)
from kneo.clock import isoformat
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError
from kneo.records.release import Release, also_closed
from kneo.registry import OpenTasks, open_tasks, spec_in
from kneo.spec.coverage.environment_gates import guarded_steps
from kneo.spec.diff import diff
from kneo.spec.diff.weakening import weakenings
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import Environment, EnvironmentGate, with_gates
from kneo.spec.reading.load import load_tree
from kneo.store import releases, sources
from kneo.store.engine import Tx
from kneo.trust.keys import PublicKey

Json = dict[str, object]
Spec = Mapping[str, object]


@dataclass(frozen=True)
class TrustConfig:
    """What a preview believes: as ``Reconciler``."""

    pin: Digest
    service_key: PublicKey | None = None
    hmac_key: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """What a commit is compared with."""

    observed: RegistryState
    gather: Callable[[Sequence[Environment], Sequence[bytes], DecisionTrust, Collection[str]], Evidence]
    spec_of: Callable[[str], Spec | None]
    """Finds the spec of something served, by digest."""

    now: datetime
    commits: Callable[[], Iterable[Commit]] = tuple
    """Reads what came since, where the trust root wants commits signed."""

    open_in: Callable[[str], OpenTasks | None] = lambda _: None
    """Finds the questions that are open in an environment; None where nobody can be asked."""


def preview(tx: Tx, snapshot: SourceSnapshot, mirror: Mirror, believing: TrustConfig, only: str | None) -> Json:
    """Say what the controller would do with a commit now, against the registry."""
    observed, source = read_registry(tx), sources.source(tx)
    accepted = source.accepted_commit if source else None
    world = PlanInputs(
        observed=observed,
        gather=lambda files, ballots, believed, named: gather_evidence(
            tx, files, ballots, believed, observed.served, named
        ),
        spec_of=lambda digest: _stored_spec(tx, digest),
        now=tx.now,
        commits=lambda: mirror.since(accepted, snapshot.commit) if accepted else (),
        open_in=lambda name: open_tasks(tx, name),
    )
    return describe_plan(snapshot, world, believing, only)


def describe_plan(snapshot: SourceSnapshot, world: PlanInputs, believing: TrustConfig, only: str | None) -> Json:
    """Judge a commit as the controller would, and say what came of it."""
    declared = load(snapshot)
    signed = _commits(world, believing, declared.revision)
    said: Json = {"ref": snapshot.ref, "revision": snapshot.revision, "commits": signed}
    trust = establish_trust(declared, world, believing)
    earlier = _earlier(world, declared.revision)
    roots = trust_difference(earlier[-1] if earlier else None, declared.roots[-1] if declared.roots else None)
    said["trust"] = roots | {"version": roots["to"], "changed": roots["from"] != roots["to"]}
    if isinstance(trust, SourceProblem):
        return said | {"problem": {"reason": trust.reason, "message": trust.message}, "environments": []}
    served = {name: dict(releases) for name, releases in world.observed.served.items()}
    told = {
        name: _environment(name, snapshot, declared, trust, world, believing, served)
        for name in in_order(declared.environments)
    }
    gone = [
        name
        for name in sorted(set(world.observed.names) - set(declared.environments))
        if only in {None, name} and not is_retired(world.observed.records.get(name), world.observed.served)
    ]
    return said | {
        "environments": [
            *(told[name] for name in sorted(told) if only in {None, name}),
            *(_gone(name, declared.revision, world.open_in(name)) for name in gone),
        ],
    }


def _commits(world: PlanInputs, believing: TrustConfig, revision: str) -> Json | None:
    """Say whether the commits that came are signed as the trust root wants; None where it does not."""
    root = root_in_force(believing.pin, _earlier(world, revision), world.now)
    try:
        asked = check_history(world.commits, root, world.now)
    except Invalid as error:
        return {"ok": False, "reason": error.code, "message": str(error)}
    return {"ok": True, "reason": "Verified", "message": ""} if asked else None


def _earlier(world: PlanInputs, revision: str) -> list[bytes]:
    """The trust roots that were accepted before a commit."""
    return [envelope for brought_by, envelope in world.observed.roots if brought_by != revision]


def _gone(name: str, revision: str, open_: OpenTasks | None) -> Json:
    """Tell of an environment whose file a commit takes away."""
    known = open_.as_json() if open_ is not None else None
    problem = removed(name, revision, open_ or "Questions that are open there can still be answered.")
    return _unchanged(name, problem) | {"removed": True, "open_tasks": known}


def establish_trust(declared: DeclaredState, world: PlanInputs, believing: TrustConfig) -> TrustContext | SourceProblem:
    """Find what a pass over this commit would believe."""
    accepted = tuple(envelope for _, envelope in world.observed.roots)
    root = verify_trust(believing.pin, declared, accepted, world.now)
    if isinstance(root, SourceProblem):
        return root
    before = root_before(believing.pin, _earlier(world, declared.revision), root, world.now)
    return TrustContext(root=root, before=before, hmac_key=believing.hmac_key, now=world.now)


def _environment(
    name: str,
    snapshot: SourceSnapshot,
    declared: DeclaredState,
    trust: TrustContext,
    world: PlanInputs,
    believing: TrustConfig,
    served: dict[str, dict[str, Release]],
) -> Json:
    """Judge one environment, and note in ``served`` what it would serve then: another may promote from it."""
    environment = declared.environments[name]
    if isinstance(environment, SourceProblem):
        return _unchanged(name, environment)
    before = rules_before(world.observed.records.get(name), environment, declared.revision)
    if isinstance(before, SourceProblem):
        return _unchanged(name, before)
    files = (environment, before) if before else (environment,)
    verified = verify_all(files, snapshot, declared, trust, world)
    believed = DecisionTrust(root=trust.root, service_key=believing.service_key, now=world.now)
    seen = world.gather(files, declared.ballots.get(name, ()), believed, verified.candidates)
    seen = replace(seen, served=served)
    plan = make_plan(
        name,
        declared.revision,
        desired=verified.desired,
        kept={rejection.bundle for rejection in verified.rejected},
        observed=seen.served.get(name, {}),
        known=world.observed.history.known,
    )
    refused = verified.rejected[0].message if verified.rejected else None
    judged = evaluate_gates(plan, rules_of(environment, before), seen, refused=refused)
    easier = weakenings(before, environment) if before else ()
    rules = _judge_file(environment, before, declared, trust, world, seen)
    if isinstance(rules, Allowed):
        _apply(judged, served.setdefault(name, {}), declared.revision, world.now)
    return {
        "name": name,
        "actions": [_action(a, rules if isinstance(rules, Blocked) else v, world) for a, v in judged],
        "verdicts": [*(_refused(item) for item in verified.rejected), *_accepted(verified)],
        "gates": [*_rules_gate(environment, rules), *(_gate(a, v) for a, v in judged if isinstance(v, Blocked))],
        "rules": {"changed": before is not None, "easier": list(easier)},
        "policy": policy_difference(before, environment) if before else [],
        "windows": window_state(environment, world.now),
        "retired": environment.spec.retired,
        "open_tasks": open_.as_json() if environment.spec.retired and (open_ := world.open_in(name)) else None,
        "new": name not in world.observed.records,
        "added_gates": [_added(gate, verified) for gate in environment.gates],
    }


def _judge_file(
    environment: Environment,
    before: Environment | None,
    declared: DeclaredState,
    trust: TrustContext,
    world: PlanInputs,
    seen: Evidence,
) -> GateVerdict:
    if before is None and environment.name in world.observed.records:
        return Allowed()
    records, threshold = world.observed.records, root_threshold(trust.root)
    files = environment_files(records, declared.environments, declared.revision, threshold)
    return evaluate_policy_gate(environment, before, files, seen)


def _apply(
    judged: Iterable[tuple[Action, GateVerdict]], here: dict[str, Release], revision: str, now: datetime
) -> None:
    for action, verdict in judged:
        if not isinstance(verdict, Allowed):
            continue
        if isinstance(action, Retire):
            del here[name_of(action)]
            continue
        here[action.bundle.name] = Release(
            environment=action.current.environment if action.current is not None else "",
            bundle=action.bundle.name,
            version=action.bundle.version,
            digest=action.bundle.digest,
            revision=revision,
            promotion_id="",
            since=isoformat(now),
        )


def _added(gate: EnvironmentGate, verified: Verified) -> Json:
    """Say which steps of what is released a question of the environment stands around."""
    views = {
        name: _view(spec_in(bundle.record), gate)
        for name, bundle in verified.desired.items()
        if isinstance(bundle, Candidate)
    }
    return {
        "gate": gate.name,
        "steps": {name: found for name, view in views.items() if (found := guarded_steps(view, gate.name))},
    }


def _view(spec: Spec, gate: EnvironmentGate) -> SpecIndex:
    loaded = load_tree(dict(spec)).spec
    assert loaded is not None, "what is planned was verified"
    return SpecIndex.of(with_gates(loaded, (gate,)))


def _unchanged(name: str, problem: SourceProblem) -> Json:
    said = {"reason": problem.reason, "message": problem.message}
    return {"name": name, "problem": said, "actions": [], "verdicts": [], "gates": []}


def verify_all(
    files: Sequence[Environment],
    snapshot: SourceSnapshot,
    declared: DeclaredState,
    trust: TrustContext,
    world: PlanInputs,
) -> Verified:
    """Verify everything that an environment names; nothing of it stands."""
    paths = [path for entry in files[0].spec.releases if (path := find_bundle(entry, declared.blobs))]
    return verify(files, declared, snapshot.read(paths), trust, world.observed.history, {})


def _action(action: Action, verdict: GateVerdict, world: PlanInputs) -> Json:
    old = world.spec_of(action.current.digest) if action.current is not None else None
    new = None if isinstance(action, Retire) else spec_in(action.bundle.record)
    return {
        "kind": kind_of(action).value,
        "bundle": name_of(action),
        "from": action.current.version if action.current is not None else None,
        "to": None if isinstance(action, Retire) else action.bundle.version,
        "digest": None if isinstance(action, Retire) else action.bundle.digest,
        "signers": [] if isinstance(action, Retire) else list(action.bundle.record.signers),
        "allowed": isinstance(verdict, Allowed),
        "diff": _diff(old, new)["changes"] if new is not None else [],
    }


def _diff(old: Spec | None, new: Spec) -> Json:
    """Say in words what a new spec changes, the most dangerous first."""
    before, after = load_tree(dict(old)).spec if old is not None else None, load_tree(dict(new)).spec
    assert after is not None, "what is planned was verified"
    return diff(before, after).as_json()


def _gate(action: Action, verdict: Blocked) -> Json:
    return {
        "bundle": name_of(action),
        "gate": verdict.gate,
        "reason": verdict.reason,
        "message": verdict.message + also_closed(further_gates(verdict)),
        "who": list(verdict.who),
    }


def _rules_gate(environment: Environment, verdict: GateVerdict) -> list[Json]:
    if isinstance(verdict, Allowed):
        return []
    said = {"gate": verdict.gate, "reason": verdict.reason, "message": verdict.message, "who": list(verdict.who)}
    return [{"bundle": environment.file, **said}]


def _refused(item: Rejection) -> Json:
    said = {"bundle": item.bundle, "version": item.version, "ok": False}
    return said | {"reason": item.reason, "message": item.message}


def _accepted(verified: Verified) -> list[Json]:
    return [
        {"bundle": bundle.name, "version": bundle.version, "ok": True, "reason": "Verified", "message": ""}
        for bundle in verified.desired.values()
    ]


def _stored_spec(tx: Tx, digest: str) -> Spec | None:
    record = releases.bundle(tx, digest)
    try:
        return spec_in(record) if record is not None else None
    except KneoError:
        return None
