"""Laws of planning and of gates that hold for whatever Git declares, whatever is served and whoever voted."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.clock import isoformat
from kneo.controller.stages.approvals import ApprovalVote
from kneo.controller.stages.gates import (
    GATES,
    Allowed,
    Blocked,
    Evidence,
    Gate,
    GateVerdict,
    Rules,
    approved,
    evaluate_gates,
)
from kneo.controller.stages.plan import Action, Promote, ReleasePlan, Retire, make_plan, name_of
from kneo.controller.stages.verify import (
    Candidate,
    Rejection,
    UnchangedBundle,
    Verified,
    candidate_of,
    unchanged_bundle,
)
from kneo.digest import Digest, digest_of
from kneo.records.release import Hold, Release, Suspension
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.trust.dsse import TrustedKey, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, root_payload, verify_chain
from kneo.trust.root_edit import EVERYTHING, first_root
from kneo.trust.statement import PAYLOAD_TYPE, Dependency, build_bundle
from kneo.trust.verify import SignatureRule, bundle_path, verify_bundle

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAMES = ("bank", "fax", "mail")
VERSIONS = 4
KEY = PrivateKey.generate()
_ME = TrustedKey(KEY.public, "ann")
_PAYLOAD = root_payload(
    first_root({"root": [_ME], "release": [_ME]}, expires=NOW + timedelta(days=1), paths={"release": EVERYTHING})
)
ROOT = verify_chain(digest_of(_PAYLOAD), [serialise(sign(TRUST_ROOT_TYPE, _PAYLOAD, KEY))], NOW)


def _bundles() -> dict[str, list[Candidate]]:
    """Bundles that were really signed and verified; each ``fax`` needs the ``bank`` of its own number."""
    made: dict[str, list[Candidate]] = {}
    for name in NAMES:
        history = made.setdefault(name, [])
        for number in range(VERSIONS):
            needs = [Dependency(name="bank", digest=made["bank"][number].digest)] if name == "fax" else []
            statement = build_bundle(
                name=name,
                version=f"1.{number}.0",
                seq=number + 1,
                prev=history[-1].digest if history else None,
                environments=["prod"],
                issued_at=NOW,
                approved_by="ann",
                spec={"number": number},
                depends_on=needs,
            )
            bundle = verify_bundle(
                serialise(sign(PAYLOAD_TYPE, statement.payload, KEY)),
                root=ROOT,
                signatures=SignatureRule(roles=("release",)),
                path=bundle_path(name, f"1.{number}.0"),
                environment="prod",
                now=NOW,
            )
            history.append(candidate_of(bundle, "main@sha1:0"))
    return made


BUNDLES = _bundles()
KNOWN = {bundle.digest: bundle.record for history in BUNDLES.values() for bundle in history}
ENVIRONMENT = """
apiVersion: kneo/v1
kind: Environment
metadata: {{name: prod}}
spec:
  policy: {{enabled: true}}
  signatures: {{roles: [release], threshold: 1}}
  prune: {{maxPercent: {percent}}}
  atomic: {atomic}
  approvals: {{required: {required}, roles: [approver], exclude: [bundle_signer], signed: {signed}}}
  people: {{ann: {{roles: [approver]}}, bob: {{roles: [approver]}}, cid: {{roles: [approver]}}, eve: {{roles: [viewer]}}}}
"""


def environment(*, required: int = 0, atomic: bool = False, signed: bool = False, percent: int = 100) -> Environment:
    flags = {"atomic": str(atomic).lower(), "signed": str(signed).lower()}
    text = ENVIRONMENT.format(required=required, percent=percent, **flags)
    return parse_environment(text.encode(), file="prod.yaml")


def rules(**changes: object) -> Rules:
    found = environment(**changes)  # type: ignore[arg-type]
    return Rules(found, frozenset({found.policy_digest}))


def release_of(bundle: Candidate) -> Release:
    return Release(
        environment="prod",
        bundle=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        revision="main@sha1:0",
        promotion_id="prom_0",
        since=isoformat(NOW),
    )


chosen = st.dictionaries(st.sampled_from(NAMES), st.integers(0, VERSIONS - 1))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Candidate | UnchangedBundle], set[str], dict[str, Release]]:
    """What Git names, what of that was refused, and what is served; what is served may stand without being judged."""
    served = {name: release_of(BUNDLES[name][number]) for name, number in draw(chosen).items()}
    desired: dict[str, Candidate | UnchangedBundle] = {}
    for name, number in draw(chosen).items():
        bundle = BUNDLES[name][number]
        stands = name in served and served[name].digest == bundle.digest and draw(st.booleans())
        desired[name] = unchanged_bundle(bundle) if stands else bundle
    refused = draw(st.sets(st.sampled_from(NAMES))) - set(desired)
    return desired, refused, served


def plan_of(
    desired: Mapping[str, Candidate | UnchangedBundle], kept: set[str], served: Mapping[str, Release]
) -> ReleasePlan:
    rejected = tuple(Rejection(name, "1.0.0", "Malformed", "Not a bundle.") for name in sorted(kept))
    return make_plan(environment(), "main@sha1:0", Verified(desired, rejected), served, KNOWN)


def apply(served: Mapping[str, Release], actions: Sequence[Action]) -> dict[str, Release]:
    """What applying does to what is served."""
    after = dict(served)
    for action in actions:
        if isinstance(action, Retire):
            del after[name_of(action)]
        else:
            after[name_of(action)] = release_of(action.bundle)
    return after


@given(worlds())
def test_applying_a_plan_reaches_what_git_names_and_a_second_one_is_empty(world: tuple) -> None:
    desired, kept, served = world
    plan = plan_of(desired, kept, served)
    after = apply(served, plan.actions)
    wanted = {name: bundle.digest for name, bundle in desired.items()}
    stays = {name: release.digest for name, release in served.items() if name in kept}
    assert {name: release.digest for name, release in after.items()} == wanted | stays
    assert plan_of(desired, kept, after).actions == ()


@given(worlds())
def test_a_plan_says_each_thing_once_and_nothing_about_what_stays(world: tuple) -> None:
    desired, kept, served = world
    plan = plan_of(desired, kept, served)
    names = [name_of(action) for action in plan.actions]
    assert len(names) == len(set(names))
    assert not set(names) & set(plan.unchanged)
    assert not set(names) & kept


# ---- gates -----------------------------------------------------------------------------------------------------------


def _scripted(number: int, waits: set[tuple[int, str, int]], order: list[Rules]) -> Gate:
    """A gate that says for each action and each set of rules what it was told to."""

    def gate(action: Action, _plan: ReleasePlan, item: Rules, _evidence: Evidence) -> GateVerdict:
        found = next(i for i, known in enumerate(order) if known is item)
        if (number, name_of(action), found) in waits:
            return Blocked(f"gate-{number}", "Blocked", "It waits.")
        return Allowed((f"appr_{number}",))

    return gate


verdicts = st.sets(st.tuples(st.integers(0, 3), st.sampled_from(NAMES), st.integers(0, 1)), max_size=6)


@given(worlds(), verdicts, st.permutations(range(4)), st.booleans(), st.booleans())
def test_what_one_gate_refuses_no_order_of_gates_lets_through(
    world: tuple, waits: set[tuple[int, str, int]], order: list[int], atomic: bool, two: bool
) -> None:
    plan = plan_of(*world)
    asked = [rules(atomic=atomic), rules(required=1)][: 2 if two else 1]
    gates = [_scripted(number, waits, asked) for number in order]
    judged = evaluate_gates(plan, asked, Evidence(now=NOW, served={"prod": world[2]}), gates=gates)
    assert [action for action, _ in judged] == list(plan.actions)
    refused = {name for _, name, number in waits if number < len(asked)}
    allowed = {name_of(action) for action, verdict in judged if isinstance(verdict, Allowed)}
    assert not allowed & refused
    if atomic:
        assert len(allowed) in {0, len(plan.actions)}
    # What is left out beyond that would leave something without what it depends on.
    after = {release.digest for release in apply(world[2], [a for a, v in judged if isinstance(v, Allowed)]).values()}
    changed = [action.bundle for action, v in judged if isinstance(v, Allowed) and not isinstance(action, Retire)]
    for bundle in changed:
        assert {need.digest for need in bundle.depends_on} <= after


@given(worlds())
def test_without_rules_or_with_a_refused_release_nothing_atomic_moves(world: tuple) -> None:
    plan, evidence = plan_of(*world), Evidence(now=NOW, served={"prod": world[2]})
    assert not any(isinstance(verdict, Allowed) for _, verdict in evaluate_gates(plan, [], evidence))
    held = evaluate_gates(plan, [rules(atomic=True)], evidence, refused="mail 1.0.0 was refused")
    assert not any(isinstance(verdict, Allowed) for _, verdict in held)


@given(
    worlds(),
    st.permutations(GATES),
    st.booleans(),
    st.sets(st.sampled_from(NAMES), max_size=1),
    st.integers(0, 1),
    st.integers(0, 100),
)
def test_the_order_of_the_real_gates_decides_nothing(
    world: tuple, gates: list[Gate], suspended: bool, held: set[str], required: int, percent: int
) -> None:
    plan = plan_of(*world)
    hold = {name: Hold(environment="prod", bundle=name, digest=None, actor="b", reason="r", since="") for name in held}
    suspension = Suspension(environment="prod", actor="b", reason="r", since="", until=None) if suspended else None
    evidence = Evidence(now=NOW, served={"prod": world[2]}, holds=hold, suspension=suspension)
    asked = [rules(required=required, percent=percent)]

    def passed(order: Sequence[Gate]) -> set[str]:
        judged = evaluate_gates(plan, asked, evidence, gates=order)
        return {name_of(action) for action, verdict in judged if isinstance(verdict, Allowed)}

    assert passed(gates) == passed(GATES)
    assert not passed(GATES) & held
    assert not (suspended and passed(GATES))


# ---- thresholds ------------------------------------------------------------------------------------------------------

SPELLINGS = ("ANN", "bob", "Bob", "ｂｏｂ", " bob ", "cid", "CID", "eve", "mallory")
OTHER_POLICY = Digest("sha256:" + "0" * 64)


def mostly(value: object, *others: object) -> st.SearchStrategy:
    return st.sampled_from([value, value, value, *others])


votes = st.lists(
    st.builds(
        ApprovalVote,
        principal=st.sampled_from(SPELLINGS),
        approves=mostly(True, False),
        signed=st.booleans(),
        id=st.integers(0, 99).map(lambda number: f"appr_{number}"),
        policy_digest=mostly("this", OTHER_POLICY),
        first_seen=st.sampled_from([0, 0, 1, 6, 7]).map(lambda days: NOW - timedelta(days=days)),
        roles=st.sampled_from([frozenset(), frozenset({"approver"}), frozenset({"release"})]),
        name=mostly("mail", "environments/prod.yaml"),
        issued=st.sampled_from([None, *(NOW - timedelta(days=days) for days in (0, 1, 9))]),
    ),
    max_size=8,
)


def counted(cast: Sequence[ApprovalVote], required: int, *, signed: bool) -> bool:
    """The rule in other words: nobody's last word is a rejection, and enough people have an approval that counts now."""
    last: dict[str, ApprovalVote] = {}
    approved_by = set()
    for vote in sorted(cast, key=lambda vote: (vote.issued or datetime.min.replace(tzinfo=UTC), not vote.approves)):
        person = unicodedata.normalize("NFKC", vote.principal).casefold().strip()
        may = "approver" in vote.roles or person in {"bob", "cid"}
        if vote.name != "mail" or not may or person == "ann" or (signed and not vote.signed):
            continue
        last[person] = vote
        in_time = vote.policy_digest != OTHER_POLICY and vote.first_seen > NOW - timedelta(days=7)
        if vote.approves and in_time:
            approved_by.add(person)
    return len(approved_by) >= required and all(vote.approves for vote in last.values())


@given(votes, st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=250)
def test_nobody_is_counted_twice_and_nobody_who_does_not_count(
    cast: list[ApprovalVote], required: int, signed: bool, random: Random
) -> None:
    asked = rules(required=required, signed=signed)
    this = asked.environment.policy_digest
    mine = [vote if vote.policy_digest == OTHER_POLICY else replace(vote, policy_digest=this) for vote in cast]
    bundle = BUNDLES["mail"][0]
    plan = plan_of({"mail": bundle}, set(), {})

    def passes(given_votes: Sequence[ApprovalVote]) -> bool:
        evidence = Evidence(now=NOW, served={}, votes={bundle.digest: tuple(given_votes)})
        return isinstance(approved(Promote(bundle, None), plan, asked, evidence), Allowed)

    assert passes(mine) == counted(mine, required, signed=signed)
    repeated = [*mine, *mine]
    random.shuffle(repeated)
    assert passes(repeated) == passes(mine)


@given(votes)
def test_votes_about_something_else_are_not_looked_at(cast: list[ApprovalVote]) -> None:
    bundle, other = BUNDLES["mail"][0], BUNDLES["mail"][1]
    asked = rules(required=1)
    mine = tuple(replace(vote, approves=True, policy_digest=asked.environment.policy_digest) for vote in cast)
    evidence = Evidence(now=NOW, served={}, votes={other.digest: mine})
    plan = plan_of({"mail": bundle}, set(), {})
    assert isinstance(approved(Promote(bundle, None), plan, asked, evidence), Blocked)
