"""Receipts of promotions, verified without the registry: by people's keys, by the service's key, under the rules that they name."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kneo.controller.approval_receipts import (
    MOST_RECEIPTS,
    CheckedApproval,
    ReceiptTerms,
    check_approval_receipt,
    verdict_json,
)
from kneo.digest import Digest
from kneo.errors import Invalid
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.trust.approvals import approval_id
from kneo.trust.dsse import TrustedKey, parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import PresentedReceipt, read_receipts
from kneo.trust.root import TRUST_ROOT_TYPE, TrustRoot, root_payload, verify_chain
from kneo.trust.root_edit import first_root, next_root, revoke_key
from kneo.trust.statement import (
    PAYLOAD_TYPE,
    ApprovalDecision,
    DecisionSubject,
    approval_content,
    build_approval,
    parse_approval,
    prune_subject,
    rewrite_subject,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BUNDLE = Digest("sha256:" + "a" * 64)
ROOT, BOB, SERVICE, STRANGER = (PrivateKey.generate() for _ in range(4))

Json = dict[str, object]

FILE = """
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec:
  releases: []
  people: {ann: {roles: [approver]}, carl: {roles: [reviewer]}}
  policy: {enabled: true}
  signatures: {accept: [dsse], roles: [release], threshold: 1}
  approvals: {required: 1, roles: [approver], signed: SIGNED}
"""


def environment(*, signed: bool = False, **names: str) -> Environment:
    text = FILE.replace("SIGNED", str(signed).lower())
    for old, new in names.items():
        text = text.replace(old, new)
    return parse_environment(text.encode(), file="environments/prod.yaml")


PROD = environment()


def trust_root(*, revoked_at: datetime | None = None, expires: datetime = NOW + timedelta(days=100)) -> TrustRoot:
    mine, his = TrustedKey(ROOT.public, "owner"), TrustedKey(BOB.public, "bob")
    document = first_root({"root": [mine], "release": [mine], "approver": [his]}, expires=expires)
    envelopes = [serialise(sign(TRUST_ROOT_TYPE, root_payload(document), ROOT))]
    if revoked_at is not None:
        document = revoke_key(next_root(document), BOB.public.keyid, at=revoked_at, reason="lost")
        envelopes.append(serialise(sign(TRUST_ROOT_TYPE, root_payload(document), ROOT)))
    return verify_chain(parse_envelope(envelopes[0]).digest, envelopes, NOW + timedelta(days=50))


def terms(**changes: object) -> ReceiptTerms:
    file = changes.pop("file", PROD)
    fields: dict[str, object] = {
        "root": trust_root(),
        "service_keys": (SERVICE.public,),
        "file_of": lambda _name: file,
        "before": None,
        "seen_at": NOW + timedelta(days=30),
    }
    return ReceiptTerms(**{**fields, **changes})  # type: ignore[arg-type]


def receipt(key: PrivateKey = BOB, person: str = "bob", **changes: object) -> Json:
    """A receipt as the service writes it; with a person of the service's key, the service signs for the person."""
    fields: dict[str, object] = {
        "bundle_name": "announcement",
        "bundle_digest": BUNDLE,
        "environment": "prod",
        "policy_digest": PROD.policy_digest,
        "decision": ApprovalDecision.APPROVE,
        "issued_at": NOW,
        "expires": NOW + timedelta(days=7),
        "approver": person if key is SERVICE else None,
        "reason": "Read the diff",
    }
    statement = build_approval(**{**fields, **changes})  # type: ignore[arg-type]
    envelope = sign(PAYLOAD_TYPE, statement.payload, key)
    unsigned = {"id": approval_id(envelope.digest, person), "principal": person, "digest": envelope.digest}
    return {
        "receipt": approval_content(statement),
        "envelope": json.loads(serialise(envelope)),
        "unsigned": {**unsigned, "origin": "registry", "first_seen_at": "2026-11-21T12:00:00+00:00"},
    }


def presented(data: bytes) -> tuple[PresentedReceipt, ...]:
    return read_receipts(data, file="receipts.json", most=MOST_RECEIPTS).receipts


def check(value: object, **changes: object) -> CheckedApproval:
    (one,) = presented(json.dumps(value).encode())
    return check_approval_receipt(one, terms(**changes))


def fields_of(checked: CheckedApproval) -> list[str]:
    assert (checked.statement is None) == bool(checked.problems)
    return [problem.field for problem in checked.problems]


@pytest.mark.parametrize("decision", list(ApprovalDecision))
def test_a_receipt_states_who_decided_what_for_which_environment_and_when(decision: ApprovalDecision) -> None:
    verb = {"approve": "approved", "reject": "rejected"}[decision]
    what = f"{verb} announcement {BUNDLE} for prod on 2026-11-21T12:00:00"
    (by_bob,) = check(receipt(decision=decision)).sentences()
    assert by_bob.startswith(f"bob {what}")
    assert by_bob.endswith("signed with their own key.")
    (by_ann,) = check(receipt(SERVICE, "ann", decision=decision)).sentences()
    assert by_ann.startswith(f"ann {what}")
    assert "service's key" in by_ann
    assert not fields_of(check(receipt()["envelope"])), "an envelope alone is a receipt, too"


def test_the_receipts_of_a_promotion_are_verified_one_by_one() -> None:
    changed = receipt(SERVICE, "ann")
    changed["receipt"] = {**changed["receipt"], "reason": "Read it twice"}  # type: ignore[dict-item]
    data = json.dumps({"promotion_id": "prom_1", "receipts": [receipt(), changed], "count": 2}).encode()
    checked = [check_approval_receipt(item, terms()) for item in presented(data)]
    verdict = verdict_json(checked)
    assert verdict["valid"] is False
    assert [one.statement is not None for one in checked] == [True, False]
    assert verdict["problems"] == [
        {
            "receipt": changed["unsigned"]["id"],  # type: ignore[index]
            "field": "reason",
            "message": "reason is shown as something else than what the envelope says.",
        }
    ]


def test_no_byte_of_what_is_signed_or_claimed_can_be_changed() -> None:
    good = receipt()
    content, unsigned = good["receipt"], good["unsigned"]
    assert isinstance(content, dict)
    assert isinstance(unsigned, dict)
    for key in content:
        assert fields_of(check({**good, "receipt": {**content, key: "x"}})) == [key]
        assert fields_of(check({**good, "receipt": {name: value for name, value in content.items() if name != key}}))
    assert fields_of(check({**good, "receipt": {**content, "more": None}})) == ["more"]
    for key in ("id", "principal", "digest"):
        for value in ("x", ["x"], 1):
            assert fields_of(check({**good, "unsigned": {**unsigned, key: value}})) == [f"unsigned.{key}"]
    envelope = parse_envelope(json.dumps(good["envelope"]).encode())
    for index in range(len(envelope.payload)):
        payload = bytearray(envelope.payload)
        payload[index] ^= 1
        bare = json.loads(serialise(replace(envelope, payload=bytes(payload))))
        assert fields_of(check(bare)), index
    (signature,) = envelope.signatures
    flipped = signature.sig[:-1] + bytes([signature.sig[-1] ^ 1])
    for changed in (replace(signature, keyid=ROOT.public.keyid), replace(signature, sig=flipped)):
        assert fields_of(check(json.loads(serialise(replace(envelope, signatures=(changed,))))))
    assert fields_of(check(json.loads(serialise(replace(envelope, payload_type="text/plain")))))


@pytest.mark.parametrize(
    ("value", "changes", "field"),
    [
        pytest.param(receipt(STRANGER), {}, "signature", id="a key that the trust root does not name"),
        pytest.param(receipt(STRANGER, approver="ann"), {}, "signature", id="another service"),
        pytest.param(receipt(SERVICE, "ann"), {"service_keys": ()}, "signature", id="no key of the service"),
        pytest.param(receipt(approver="ann"), {}, "signature", id="a person in the name of another"),
        pytest.param(receipt(SERVICE, "carl"), {}, "approver", id="a person without the role"),
        pytest.param(receipt(SERVICE, "zoe"), {}, "approver", id="a person whom the file does not name"),
        pytest.param(receipt(ROOT, "owner"), {}, "approver", id="a key of another role"),
        pytest.param(receipt(environment="dev"), {}, "environment", id="another environment"),
        pytest.param(receipt(policy_digest=BUNDLE), {}, "policyDigest", id="other rules"),
        pytest.param(
            receipt(SERVICE, "ann", policy_digest=environment(signed=True).policy_digest),
            {"file": environment(signed=True)},
            "approver",
            id="rules that count own signatures only",
        ),
        pytest.param(receipt(), {"seen_at": NOW - timedelta(days=1)}, "signature", id="signed later than it was seen"),
        pytest.param(
            receipt(), {"root": trust_root(expires=NOW + timedelta(days=9))}, "signature", id="an expired trust root"
        ),
        pytest.param(
            receipt(), {"root": trust_root(revoked_at=NOW + timedelta(days=20))}, "signature", id="a revoked key"
        ),
    ],
)
def test_a_receipt_is_refused(value: Json, changes: dict[str, object], field: str) -> None:
    assert field in fields_of(check(value, **changes))


def test_a_decision_that_was_seen_before_a_revocation_or_an_expiry_is_accepted() -> None:
    seen = NOW + timedelta(days=1)
    assert not fields_of(check(receipt(), root=trust_root(revoked_at=NOW + timedelta(days=20)), seen_at=seen))
    assert not fields_of(check(receipt(), root=trust_root(expires=NOW + timedelta(days=9)), seen_at=seen))


def test_approvers_of_the_file_before_decide_about_rules() -> None:
    after = environment(carl="zoe", reviewer="approver")
    value = {"bundle_name": "environments/prod.yaml", "bundle_digest": after.policy_digest}
    by_ann = receipt(SERVICE, "ann", policy_digest=after.policy_digest, **value)
    by_zoe = receipt(SERVICE, "zoe", policy_digest=after.policy_digest, **value)
    assert fields_of(check(by_ann, file=after)) == ["before"]
    assert not fields_of(check(by_ann, file=after, before=PROD))
    assert fields_of(check(by_zoe, file=after, before=PROD)) == ["approver"]
    misnamed = receipt(policy_digest=after.policy_digest, bundle_digest=after.policy_digest)
    assert fields_of(check(misnamed, file=after, before=PROD)) == ["name"]
    # The people of a first file are unverified, so keys of the trust root decide about it.
    assert fields_of(check(by_ann, file=after, before=after)) == ["approver"]
    for key, person in ((BOB, "bob"), (ROOT, "owner")):
        assert not fields_of(
            check(receipt(key, person, policy_digest=after.policy_digest, **value), file=after, before=after)
        )


def test_a_removal_has_receipts_and_a_rewritten_history_is_no_promotion() -> None:
    def about(subject: DecisionSubject) -> CheckedApproval:
        return check(receipt(bundle_name=subject.name, bundle_digest=subject.digest, about=subject))

    assert not fields_of(about(prune_subject("prod", "b" * 40, [("announcement", BUNDLE)])))
    assert fields_of(about(rewrite_subject("b" * 40, "c" * 40))) == ["about"]


@pytest.mark.parametrize("value", [[], {}, {"receipts": []}, {"receipts": [1]}, {"envelope": {}}, {"unsigned": 1}])
def test_a_file_without_receipts_is_refused(value: object) -> None:
    with pytest.raises(Invalid):
        presented(json.dumps(value).encode())


@pytest.mark.parametrize("field", ["receipt", "unsigned"])
def test_a_claim_that_is_no_object_is_refused(field: str) -> None:
    with pytest.raises(Invalid, match=f"{field} must be a JSON object"):
        check({**receipt(), field: ["x"]})


def test_a_file_has_a_bounded_number_of_receipts() -> None:
    data = json.dumps({"receipts": [receipt()["envelope"]] * 1_001}).encode()
    with pytest.raises(Invalid, match="1001 receipts"):
        presented(data)


def test_the_payload_of_an_envelope_is_that_of_the_decision() -> None:
    payload = base64.b64decode(receipt()["envelope"]["payload"])  # type: ignore[index]
    assert approval_content(parse_approval(payload)) == receipt()["receipt"]
