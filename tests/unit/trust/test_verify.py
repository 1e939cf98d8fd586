from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from kneo.digest import Digest, digest_of
from kneo.errors import KneoError, Untrusted
from kneo.trust import dsse
from kneo.trust.approvals import verify_approval
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import Algorithm, PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, RootDocument, TrustRoot, root_payload, verify_chain
from kneo.trust.root_edit import add_key, first_root, revoke_key, set_role
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, BundleStatement, build_approval, build_bundle
from kneo.trust.verify import (
    SEQUENCE_JUMP,
    NewestAccepted,
    SignatureRule,
    VerifiedBundle,
    check_sequence,
    verification_steps,
    verify_bundle,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ROOT, ANN, ANN2, BOB, EVE = (PrivateKey.generate() for _ in range(5))
CARA = PrivateKey.generate(Algorithm.P256)
PATH = "bundles/research-agent/1.4.0.dsse.json"
SPEC = {"version": "v1", "agent": {"name": "research"}}
ONE = SignatureRule(roles=("release",))
TWO = SignatureRule(roles=("release",), threshold=2)
OLD = Digest("sha256:" + "0" * 64)


def document() -> RootDocument:
    release = [TrustedKey(ANN.public, "ann"), TrustedKey(ANN2.public, "ann"), TrustedKey(BOB.public, "bob")]
    return first_root(
        {
            "root": [TrustedKey(ROOT.public, "root")],
            "release": release,
            "security": [TrustedKey(CARA.public, "cara")],
            "approver": [TrustedKey(CARA.public, "cara")],
        },
        expires=NOW + 365 * DAY,
        paths={"release": ["bundles/*"], "security": ["bundles/research-*"]},
    )


def trusted(content: RootDocument | None = None) -> TrustRoot:
    payload = root_payload(content or document())
    return verify_chain(digest_of(payload), [dsse.serialise(dsse.sign(TRUST_ROOT_TYPE, payload, ROOT))], NOW)


def bundle(**changes: object) -> BundleStatement:
    fields: dict[str, object] = {
        "name": "research-agent",
        "version": "1.4.0",
        "seq": 3,
        "prev": OLD,
        "environments": ["dev", "prod"],
        "issued_at": NOW - DAY,
        "approved_by": "ann",
        "spec": SPEC,
    }
    return build_bundle(**{**fields, **changes})  # type: ignore[arg-type]


def signed(payload: bytes, *keys: PrivateKey, kind: str = PAYLOAD_TYPE) -> bytes:
    envelope = dsse.Envelope(kind, payload, ())
    for key in keys:
        envelope = dsse.add_signature(envelope, key)
    return dsse.serialise(envelope)


def verify(data: bytes, **changes: object) -> VerifiedBundle:
    question: dict[str, object] = {
        "root": trusted(), "signatures": ONE, "path": PATH, "environment": "prod", "now": NOW,
    }  # fmt: skip
    return verify_bundle(data, **{**question, **changes})  # type: ignore[arg-type]


def refusal(data: bytes, **changes: object) -> str:
    with pytest.raises(KneoError) as refused:
        verify(data, **changes)
    return refused.value.code


def test_a_signed_bundle_is_verified() -> None:
    data = signed(bundle().payload, ANN)
    verified = verify(data)
    assert (verified.name, verified.version, verified.seq, verified.prev) == ("research-agent", "1.4.0", 3, OLD)
    assert verified.digest == digest_of(verified.payload) == bundle().digest
    assert verified.spec == SPEC
    assert verified.envelope == data
    assert [signer.principal for signer in verified.signers] == ["ann"]


def test_wrapping_anew_does_not_change_identity() -> None:
    once, twice = signed(bundle().payload, ANN), signed(bundle().payload, BOB, ANN)
    spaced = json.dumps(json.loads(once), indent=8).encode()
    assert verify(once).digest == verify(twice).digest == verify(spaced).digest


def test_nobody_else_makes_a_verified_bundle() -> None:
    verified = verify(signed(bundle().payload, ANN))
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, name="other")


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ([ANN, BOB], TWO),
        ([ANN, ANN2, BOB], TWO),
        ([BOB, CARA], SignatureRule(roles=("release", "security"), threshold=2)),
        ([CARA], SignatureRule(roles=("security",))),
    ],
)
def test_enough_different_people_are_enough(keys: list[PrivateKey], rule: SignatureRule) -> None:
    assert len(verify(signed(bundle().payload, *keys), signatures=rule).signers) == len(keys)


@pytest.mark.parametrize(
    ("keys", "rule", "code"),
    [
        ([ANN, ANN2], TWO, "ThresholdNotMet"),
        ([ANN, EVE], TWO, "ThresholdNotMet"),
        ([EVE], ONE, "SignatureInvalid"),
        ([ROOT], ONE, "SignatureInvalid"),
        ([CARA], ONE, "SignatureInvalid"),
        ([ANN], SignatureRule(roles=(), threshold=1), "PolicyDenied"),
        ([ANN], SignatureRule(roles=("release",), threshold=0), "PolicyDenied"),
        ([ANN], SignatureRule(roles=("nobody",)), "PolicyDenied"),
        ([CARA], SignatureRule(roles=("approver",)), "PolicyDenied"),
        ([ANN], SignatureRule(roles=("release",), accept=()), "PolicyDenied"),
        ([ANN], SignatureRule(roles=("release",), accept=("hmac-v1",)), "PolicyDenied"),
    ],
    ids=["two keys, one person", "a stranger", "only a stranger", "the root", "another role", "no roles", "threshold 0",
         "no such role", "a role without paths", "accepts nothing", "accepts only hmac"],
)  # fmt: skip
def test_too_few_or_nobody_is_refused(keys: list[PrivateKey], rule: SignatureRule, code: str) -> None:
    assert refusal(signed(bundle().payload, *keys), signatures=rule) == code


def test_the_trust_root_may_ask_for_more_than_the_environment() -> None:
    root = trusted(set_role(document(), "release", threshold=2))
    assert refusal(signed(bundle().payload, ANN), root=root) == "ThresholdNotMet"
    assert refusal(signed(bundle().payload, ANN, ANN2), root=root) == "ThresholdNotMet"
    assert verify(signed(bundle().payload, ANN, BOB), root=root)
    either = SignatureRule(roles=("release", "security"))
    assert [s.principal for s in verify(signed(bundle().payload, ANN, CARA), root=root, signatures=either).signers] == [
        "cara"
    ]


def test_a_role_signs_within_its_paths_only() -> None:
    other = bundle(name="billing-agent")
    path = "bundles/billing-agent/1.4.0.dsse.json"
    rule = SignatureRule(roles=("security",))
    assert refusal(signed(other.payload, CARA), path=path, signatures=rule) == "PolicyDenied"
    assert verify(signed(other.payload, ANN), path=path)


def test_a_signature_under_another_key_id_counts_once() -> None:
    value = json.loads(signed(bundle().payload, ANN))
    value["signatures"] += [{**value["signatures"][0], "keyid": keyid} for keyid in (BOB.keyid, "", "x")]
    twice = json.dumps(value).encode()
    assert refusal(twice, signatures=TWO) == "ThresholdNotMet"
    assert [s.keyid for s in verify(twice).signers] == [ANN.keyid]
    value["signatures"] = [{**value["signatures"][0], "keyid": BOB.keyid}]
    assert [s.keyid for s in verify(json.dumps(value).encode()).signers] == [ANN.keyid]


def test_what_was_changed_after_signing_is_refused() -> None:
    value = json.loads(signed(bundle().payload, ANN))
    value["payload"] = base64.b64encode(bundle(seq=4).payload).decode()
    assert refusal(json.dumps(value).encode()) == "SignatureInvalid"
    value = json.loads(signed(bundle().payload, ANN, kind="application/json"))
    assert refusal(json.dumps(value).encode()) == "Malformed"
    value["payloadType"] = PAYLOAD_TYPE
    assert refusal(json.dumps(value).encode()) == "SignatureInvalid"


def test_signatures_are_checked_before_the_payload_is_read() -> None:
    assert refusal(signed(b"not json", EVE)) == "SignatureInvalid"
    assert refusal(signed(b"not json", ANN)) == "Malformed"


def contradict(edit: Callable[[dict[str, object]], object]) -> bytes:
    value = json.loads(bundle().payload)
    edit(value)
    return signed(json.dumps(value).encode(), ANN)


def test_a_statement_that_contradicts_itself_is_refused() -> None:
    assert refusal(contradict(lambda v: v["predicate"]["spec"].update(extra=1))) == "Malformed"  # type: ignore[index]
    assert refusal(contradict(lambda v: v["predicate"].update(specDigest=OLD))) == "Malformed"  # type: ignore[attr-defined]
    assert refusal(contradict(lambda v: v["subject"][0]["digest"].update(sha256="0" * 64))) == "Malformed"  # type: ignore[index]
    assert refusal(contradict(lambda v: v["subject"][0].update(name="other"))) == "SubjectMismatch"  # type: ignore[index]
    assert refusal(contradict(lambda v: v.update(predicateType="urn:kneo:attestation:approval:v1"))) == "Malformed"


@pytest.mark.parametrize(
    "path",
    [
        "bundles/other/1.4.0.dsse.json",
        "bundles/research-agent/1.3.0.dsse.json",
        "bundles/research-agent/1.4.0.json",
        "bundles/research-agent/1.4.0.dsse.json/x",
        "bundles/x/../research-agent/1.4.0.dsse.json",
        "bundles/research-agent/1.4.0.dsse.json\n",
        "bundles/Research-Agent/1.4.0.dsse.json",
    ],
)
def test_a_bundle_stands_in_its_own_place_only(path: str) -> None:
    assert refusal(signed(bundle().payload, ANN), path=path) == "SubjectMismatch"


def test_a_bundle_runs_where_it_was_signed_for_only() -> None:
    assert refusal(signed(bundle().payload, ANN), environment="staging") == "SubjectMismatch"


def test_time() -> None:
    data = signed(bundle(expires_at=NOW + DAY).payload, ANN)
    assert verify(data)
    assert refusal(data, now=NOW + DAY) == "Expired"
    assert refusal(data, now=NOW - 2 * DAY) == "NotYetValid"
    assert verify(data, now=NOW - DAY - timedelta(minutes=5))


def test_a_revocation_spares_what_was_seen_before_it() -> None:
    data = signed(bundle().payload, ANN)
    root = trusted(revoke_key(document(), ANN.keyid, at=NOW - DAY, reason="lost"))
    assert refusal(data, root=root) == "KeyRevoked"
    assert verify(data, root=root, first_seen=NOW - 2 * DAY)
    assert refusal(data, root=root, first_seen=NOW - DAY) == "KeyRevoked"
    assert verify(signed(bundle().payload, ANN, BOB), root=root)
    assert refusal(signed(bundle().payload, ANN, BOB), root=root, signatures=TWO) == "KeyRevoked"


def test_a_compromise_spares_nothing_after_it() -> None:
    data = signed(bundle().payload, ANN)
    content = revoke_key(document(), ANN.keyid, at=NOW - DAY, reason="stolen", compromised_since=NOW - 5 * DAY)
    assert refusal(data, root=trusted(content), first_seen=NOW - 2 * DAY) == "KeyRevoked"
    assert verify(data, root=trusted(content), first_seen=NOW - 6 * DAY)


def test_a_revocation_that_lies_ahead_does_not_count_yet() -> None:
    root = trusted(revoke_key(document(), ANN.keyid, at=NOW + DAY, reason="leaves"))
    assert verify(signed(bundle().payload, ANN), root=root)
    assert refusal(signed(bundle().payload, ANN), root=root, now=NOW + DAY) == "KeyRevoked"


def test_one_person_with_another_key_after_rotation() -> None:
    root = trusted(add_key(document(), EVE.public, principal="bob", roles=["release"]))
    assert refusal(signed(bundle().payload, BOB, EVE), root=root, signatures=TWO) == "ThresholdNotMet"


def test_the_account_agrees_with_the_verdict() -> None:
    good = signed(bundle().payload, ANN)
    question = {"root": trusted(), "signatures": ONE, "path": PATH, "environment": "prod", "now": NOW}
    steps = verification_steps(good, **question)  # type: ignore[arg-type]
    assert [s.number for s in steps] == list(range(1, 10))
    assert all(s.passed for s in steps)
    steps = verification_steps(good, **{**question, "environment": "staging"})  # type: ignore[arg-type]
    assert [s.passed for s in steps] == [True] * 7 + [False, None]
    assert steps[7].code == "SubjectMismatch"
    assert "staging" in steps[7].detail
    assert verification_steps(b"", **question)[0].passed is False  # type: ignore[arg-type]


# -- what may follow what ------------------------------------------------------------------------------------------


def next_bundle(seq: int, prev: Digest | None, **changes: object) -> VerifiedBundle:
    return verify(signed(bundle(seq=seq, prev=prev, **changes).payload, ANN))


def sequence_refusal(candidate: VerifiedBundle, high: NewestAccepted | None, known: set[Digest]) -> str:
    with pytest.raises(Untrusted) as refused:
        check_sequence(candidate, high, known)
    return refused.value.code


def test_sequence_goes_up() -> None:
    first = next_bundle(1, None)
    check_sequence(first, None, set())
    high = NewestAccepted(1, first.digest)
    second = next_bundle(2, first.digest)
    check_sequence(second, high, {first.digest})
    check_sequence(next_bundle(7, OLD), high, {first.digest})
    check_sequence(first, NewestAccepted(2, second.digest), {first.digest, second.digest})
    check_sequence(second, NewestAccepted(2, second.digest), set())


def test_what_does_not_follow_is_refused() -> None:
    first = next_bundle(1, None)
    second = next_bundle(2, first.digest)
    high, known = NewestAccepted(2, second.digest), {first.digest, second.digest}
    other_spec = {"version": "v1"}
    assert sequence_refusal(next_bundle(1, None, spec=other_spec), high, known) == "RollbackDetected"
    assert sequence_refusal(next_bundle(2, first.digest, spec=other_spec), high, known) == "Equivocation"
    assert sequence_refusal(next_bundle(3, first.digest), high, known) == "Equivocation"
    assert sequence_refusal(next_bundle(3 + SEQUENCE_JUMP, OLD), high, known) == "LimitExceeded"
    assert sequence_refusal(next_bundle(SEQUENCE_JUMP + 1, None), None, set()) == "LimitExceeded"


# -- approvals -----------------------------------------------------------------------------------------------------

POLICY = Digest("sha256:" + "9" * 64)


def approval(key: PrivateKey, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "bundle_name": "research-agent",
        "bundle_digest": bundle().digest,
        "environment": "prod",
        "policy_digest": POLICY,
        "decision": ApprovalDecision.APPROVE,
        "issued_at": NOW - DAY,
        "expires": NOW + DAY,
    }
    return signed(build_approval(**{**fields, **changes}).payload, key)  # type: ignore[arg-type]


def approval_refusal(data: bytes, **changes: object) -> str:
    question: dict[str, object] = {
        "root": trusted(), "roles": ["approver"], "bundle_digest": bundle().digest, "environment": "prod",
        "policy_digest": POLICY, "now": NOW,
    }  # fmt: skip
    try:
        verify_approval(data, **{**question, **changes})  # type: ignore[arg-type]
    except KneoError as refused:
        return refused.code
    return "fine"


def test_an_approval_holds_for_what_it_was_made_about() -> None:
    assert approval_refusal(approval(CARA)) == "fine"
    assert approval_refusal(approval(CARA, environment="dev")) == "SubjectMismatch"
    assert approval_refusal(approval(CARA, bundle_digest=OLD)) == "SubjectMismatch"
    assert approval_refusal(approval(CARA, policy_digest=OLD)) == "SubjectMismatch"
    assert approval_refusal(approval(CARA, issued_at=NOW - DAY, expires=NOW)) == "Expired"
    assert approval_refusal(approval(ANN)) == "SignatureInvalid"
    assert approval_refusal(approval(CARA), roles=[]) == "SignatureInvalid"
    assert approval_refusal(signed(bundle().payload, CARA)) == "Malformed"
    value = json.loads(dsse.parse_envelope(approval(CARA)).payload)
    value["subject"][0]["digest"]["sha256"] = "0" * 64
    assert approval_refusal(signed(json.dumps(value).encode(), CARA)) == "Malformed"
    root = trusted(revoke_key(document(), CARA.keyid, at=NOW, reason="lost"))
    assert approval_refusal(approval(CARA), root=root) == "KeyRevoked"
    assert approval_refusal(approval(CARA), root=root, first_seen=NOW - DAY) == "fine"
