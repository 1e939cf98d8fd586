from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from kneo.digest import digest_of
from kneo.errors import Invalid, KneoError
from kneo.trust.hmac_bundle import check_hmac_bundle, sign_hmac_bundle, verify_hmac_bundle
from kneo.trust.verify import NewestAccepted, SignatureRule, VerifiedBundle, check_sequence

AT = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {"version": "v1", "agent": {"name": "é"}}
RULE = SignatureRule(roles=("release",), accept=("dsse", "hmac-v1"))


def signed(environment: str | None = None, key: str = "k") -> bytes:
    return sign_hmac_bundle(
        SPEC, approved_by="rel", environment=environment, created_at=AT, key=key, key_id="KNEO_SERV_SPEC_SIGNING_KEY"
    )


def test_it_is_what_the_published_tool_makes() -> None:
    value = json.loads(signed())
    assert value == {
        "kind": "kneo.spec.bundle",
        "version": "v1",
        "metadata": {"approved_by": "rel", "environment": None, "created_at": "2026-01-01T00:00:00+00:00"},
        "spec": SPEC,
        "digest": {
            "algorithm": "SHA256",
            "value": "74e34d59ce12c5e7dc9c7bf1711bc1a84af440882ffc228bee45ca65cf85ce02",
        },
        "signature": {
            "algorithm": "HMAC-SHA256",
            "key_id": "KNEO_SERV_SPEC_SIGNING_KEY",
            "value": "501381f59b0b00e7f7ec672a14c6d4ab569176d88cccce365947958f832d008c",
        },
    }
    assert signed().decode().startswith('{\n  "digest": {\n    "algorithm"')
    assert "é" in signed().decode()


def test_what_was_signed_checks() -> None:
    report = check_hmac_bundle(signed(), "k")
    assert (report.valid, report.digest_valid, report.signature_valid, report.errors) == (True, True, True, ())


def test_every_fault_is_named() -> None:
    value = json.loads(signed())
    value["spec"]["agent"]["name"] = "e"
    report = check_hmac_bundle(json.dumps(value).encode(), "k")
    assert (report.valid, report.digest_valid, report.signature_valid, len(report.errors)) == (False, False, False, 2)
    report = check_hmac_bundle(signed(), "other")
    assert (report.valid, report.digest_valid, report.signature_valid) == (False, True, False)
    value = {**json.loads(signed()), "kind": "x", "version": "v2", "spec": []}
    assert len(check_hmac_bundle(json.dumps(value).encode(), "k").errors) == 5
    assert len(check_hmac_bundle(b"{}", "k").errors) == 5
    for signature in (None, "x", {}, {"algorithm": "none", "value": ""}, {"algorithm": "HMAC-SHA256", "value": 3}):
        assert not check_hmac_bundle(json.dumps({**json.loads(signed()), "signature": signature}).encode(), "k").valid


def test_no_key_is_an_error() -> None:
    with pytest.raises(Invalid):
        check_hmac_bundle(signed(), "")
    with pytest.raises(Invalid):
        signed(key="")
    with pytest.raises(Invalid, match="quotes"):
        sign_hmac_bundle({"x": AT}, approved_by="a", environment=None, created_at=AT, key="k", key_id="K")


def verify(data: bytes, **changes: object) -> VerifiedBundle:
    question: dict[str, object] = {
        "key": "k", "signatures": RULE, "path": "bundles/a/1.0.json", "environment": "dev",
    }  # fmt: skip
    return verify_hmac_bundle(data, **{**question, **changes})  # type: ignore[arg-type]


def refusal(data: bytes, **changes: object) -> str:
    with pytest.raises(KneoError) as refused:
        verify(data, **changes)
    return refused.value.code


def test_an_environment_must_say_that_it_accepts_it() -> None:
    bundle = verify(signed("dev"))
    assert (bundle.name, bundle.version, bundle.seq, bundle.spec) == ("a", "1.0", 0, SPEC)
    assert bundle.digest == digest_of(bundle.payload)
    assert verify(json.dumps(json.loads(signed("dev"))).encode()).digest == bundle.digest
    assert refusal(signed("dev"), signatures=SignatureRule(roles=("release",))) == "PolicyDenied"
    two = SignatureRule(roles=("release",), accept=("hmac-v1",), threshold=2)
    assert refusal(signed("dev"), signatures=two) == "ThresholdNotMet"
    assert refusal(signed("prod")) == "SubjectMismatch"
    assert verify(signed("dev"), path="bundles/a/1.0.dsse.json").version == "1.0"
    for path in ("bundles/1.0.json", "bundles/a/1.0", "bundles/a/1.0.dsse", "bundles/../1.0.json", "a/b/1.0.json"):
        assert refusal(signed("dev"), path=path) == "SubjectMismatch"
    assert refusal(signed("dev"), key="other") == "SignatureInvalid"


def test_a_name_with_a_signed_history_does_not_fall_back() -> None:
    bundle = verify(signed())
    check_sequence(bundle, None, set())
    check_sequence(bundle, NewestAccepted(0, digest_of(b"an earlier one")), set())
    with pytest.raises(KneoError) as refused:
        check_sequence(bundle, NewestAccepted(3, digest_of(b"signed")), set())
    assert refused.value.code == "RollbackDetected"
