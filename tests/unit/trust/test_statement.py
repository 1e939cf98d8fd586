from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import Invalid
from kneo.spec.code import MAX_CODE_BYTES, BundleCode
from kneo.trust.dsse import parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import (
    BUNDLE_BYTES,
    PAYLOAD_TYPE,
    ApprovalDecision,
    BundleSource,
    BundleStatement,
    Dependency,
    build_approval,
    build_bundle,
    parse_approval,
    parse_bundle,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SPEC = {"version": "v1", "agent": {"name": "é", "temperature": 1.0}}
DIGEST = Digest("sha256:" + "a" * 64)


def bundle(**changes: object) -> BundleStatement:
    fields: dict[str, object] = {
        "name": "research-agent",
        "version": "1.4.0",
        "seq": 3,
        "prev": DIGEST,
        "environments": ["dev", "prod"],
        "issued_at": NOW,
        "expires_at": NOW + timedelta(days=90),
        "approved_by": "ann",
        "depends_on": [Dependency(name="tools", digest=DIGEST)],
        "source": BundleSource(repo="https://example.org/x.git", commit="b" * 40, ci_run="17"),
        "spec": SPEC,
    }
    return build_bundle(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_bundle_says_what_the_format_says() -> None:
    value = json.loads(bundle().payload)
    assert set(value) == {"_type", "subject", "predicateType", "predicate"}
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "urn:kneo:attestation:bundle:v1"
    assert set(value["predicate"]) == {
        "name", "version", "seq", "prev", "environments", "issuedAt", "expiresAt", "approvedBy",
        "dependsOn", "source", "spec", "specDigest",
    }  # fmt: skip
    assert value["subject"] == [
        {"name": "research-agent", "digest": {"sha256": digest_of_json(SPEC).removeprefix("sha256:")}}
    ]
    assert value["predicate"]["specDigest"] == digest_of_json(SPEC)
    assert value["predicate"]["issuedAt"] == "2026-11-21T12:00:00.000000+00:00"


def test_no_expiry_is_no_key() -> None:
    assert "expiresAt" not in json.loads(bundle(expires_at=None).payload)["predicate"]
    assert parse_bundle(bundle(expires_at=None).payload).predicate.expires_at is None


def test_what_was_built_is_what_is_read() -> None:
    built = bundle()
    read = parse_bundle(built.payload)
    assert read == built
    assert read.digest == digest_of(built.payload)
    assert bundle().payload == built.payload


def test_an_approval_says_what_the_format_says() -> None:
    approval = build_approval(
        bundle_name="research-agent",
        bundle_digest=DIGEST,
        environment="prod",
        policy_digest=Digest("sha256:" + "c" * 64),
        decision=ApprovalDecision.APPROVE,
        issued_at=NOW,
        expires=NOW + timedelta(days=7),
    )
    value = json.loads(approval.payload)
    assert value["predicateType"] == "urn:kneo:attestation:approval:v1"
    assert set(value["predicate"]) == {"bundleDigest", "environment", "policyDigest", "decision", "issuedAt", "expires"}
    assert value["predicate"]["decision"] == "approve"
    assert parse_approval(approval.payload) == approval


Edit = Callable[[dict[str, object], dict[str, object]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda s, _: s.update({"_type": "https://in-toto.io/Statement/v0.1"}),
        lambda s, _: s.update({"predicateType": "urn:kneo:attestation:bundle:v2"}),
        lambda s, _: s.update({"predicateType": "urn:kneo:attestation:approval:v1"}),
        lambda s, _: s.update({"subject": []}),
        lambda s, _: s.update({"subject": s["subject"] * 2}),  # type: ignore[operator]
        lambda s, _: s.update({"surplus": 1}),
        lambda s, _: s.pop("predicate"),
        lambda _, p: p.update({"surplus": 1}),
        lambda _, p: p.pop("prev"),
        lambda _, p: p.pop("source"),
        lambda _, p: p.pop("specDigest"),
        lambda _, p: p.update({"seq": 0}),
        lambda _, p: p.update({"seq": "3"}),
        lambda _, p: p.update({"seq": True}),
        lambda _, p: p.update({"seq": 3.0}),
        lambda _, p: p.update({"prev": "sha256:" + "A" * 64}),
        lambda _, p: p.update({"prev": "sha256:" + "a" * 64 + "\n"}),
        lambda _, p: p.update({"name": "../up"}),
        lambda _, p: p.update({"name": "a/b"}),
        lambda _, p: p.update({"name": "a\n"}),
        lambda _, p: p.update({"environments": []}),
        lambda _, p: p.update({"environments": ["*"]}),
        lambda _, p: p.update({"environments": "prod"}),
        lambda _, p: p.update({"issuedAt": "2026-11-21T12:00:00"}),
        lambda _, p: p.update({"issuedAt": 1}),
        lambda _, p: p.update({"approvedBy": " "}),
        lambda _, p: p.update({"spec": "{}"}),
        lambda _, p: p.update({"spec": None}),
        lambda _, p: p.update({"issued_at": p.pop("issuedAt")}),
    ],
)
def test_anything_else_is_malformed(edit: Edit) -> None:
    value = json.loads(bundle().payload)
    edit(value, value["predicate"])
    with pytest.raises(Invalid) as refused:
        parse_bundle(json.dumps(value).encode(), file="bundles/x/1.dsse.json")
    assert refused.value.code == "Malformed"
    assert "bundles/x/1.dsse.json" in refused.value.message


def test_a_refusal_names_the_field_and_not_the_value() -> None:
    value = json.loads(bundle().payload)
    value["predicate"]["approvedBy"] = ["a secret"]
    with pytest.raises(Invalid, match="approvedBy") as refused:
        parse_bundle(json.dumps(value).encode())
    assert "a secret" not in str(refused.value)


def test_a_duplicate_key_in_the_payload_is_refused() -> None:
    payload = bundle().payload.replace(b'"seq":3', b'"seq":3,"seq":4')
    with pytest.raises(Invalid) as refused:
        parse_bundle(payload)
    assert refused.value.code == "Malformed"


def test_a_spec_that_json_cannot_hold_is_refused() -> None:
    for spec in ({"x": float("nan")}, {"x": 2**60}, {"x": NOW}):
        with pytest.raises(Invalid):
            bundle(spec=spec)


def test_a_payload_of_two_mebibytes_is_read_and_a_larger_one_refused() -> None:
    code = BundleCode({"a.py": b"#" * MAX_CODE_BYTES}, {})
    room = BUNDLE_BYTES - len(bundle(code=code, spec=SPEC | {"metadata": {"note": ""}}).payload)
    whole = bundle(code=code, spec=SPEC | {"metadata": {"note": "x" * room}})
    assert len(whole.payload) == BUNDLE_BYTES
    envelope = serialise(sign(PAYLOAD_TYPE, whole.payload, PrivateKey.generate()))
    read = parse_bundle(parse_envelope(envelope).payload)
    assert read.code == code
    with pytest.raises(Invalid) as refused:
        bundle(code=code, spec=SPEC | {"metadata": {"note": "x" * (room + 1)}})
    assert refused.value.code == "LimitExceeded"
