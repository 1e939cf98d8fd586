"""Receipts: whatever is changed in one is found with nothing but the public key, and named."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue

from kneo.errors import Invalid
from kneo.trust.dsse import Envelope, Signature, sign
from kneo.trust.keys import PrivateKey, PublicKey
from kneo.trust.receipt import (
    PresentedReceipt,
    Receipt,
    ReceiptStatement,
    Voter,
    build_receipt,
    content_digest,
    find_receipts,
    mark_of,
    read_receipts,
    sign_receipt,
)
from kneo.trust.receipt_check import SIGNATURE, CheckedReceipt, check_chain, check_receipt
from kneo.trust.statement import PAYLOAD_TYPE

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY = PrivateKey.generate()


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def receipt(**changes: object) -> Receipt:
    ann = Voter(actor="ann", decision="approved", at=NOW, roles=("approver",), groups=("editors",))
    fields: dict[str, object] = {
        "id": "rcp_1", "task": "cont_1", "request": "req_1", "run": "run_1", "environment": "prod",
        "gate": "release.before", "position": "before", "step": "all/release", "attempt": 0,
        "subject_digest": digest("a"), "decision": "approved", "effect": None,
        "content_digest": content_digest({"comment": "fine"}), "by": "person", "actor": "ann", "decided_at": NOW,
        "voters": (ann,), "allow_self": False, "bundle_digest": digest("b"), "policy_digest": digest("c"),
        "source": None, "audit_event": "evt_1", "audit_leaf": "d" * 64, "audit_size": 7, "audit_head": "e" * 64,
        "sequence": 1, "previous": None,
    }  # fmt: skip
    return Receipt(**{**fields, **changes})  # type: ignore[arg-type]


def signed(statement: ReceiptStatement) -> Envelope:
    return sign_receipt(statement, KEY)


def check(envelope: Envelope, view: dict[str, JsonValue] | None = None, key: PublicKey = KEY.public) -> CheckedReceipt:
    return check_receipt(PresentedReceipt(envelope=envelope, view=view), [key])


def fields_named(found: CheckedReceipt) -> set[str]:
    assert found.receipt is None
    return {problem.field for problem in found.problems}


def predicate(envelope: Envelope) -> dict[str, JsonValue]:
    value: dict[str, JsonValue] = json.loads(envelope.payload)["predicate"]
    return value


FIELDS = sorted(set(predicate(signed(build_receipt(receipt())))) - {"marks"})


def other(value: JsonValue) -> JsonValue:
    """A value of the same kind that is not the same."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1:] != "0" else "1")
        case list():
            return []
        case _:
            return "something"


def test_what_was_signed_is_believed() -> None:
    said = receipt()
    found = check(signed(build_receipt(said)))
    assert found.receipt == said
    assert not found.problems


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_field_is_named(name: str) -> None:
    envelope = signed(build_receipt(receipt()))
    statement = json.loads(envelope.payload)
    statement["predicate"][name] = other(statement["predicate"][name])
    changed = replace(envelope, payload=json.dumps(statement).encode())
    assert name in fields_named(check(changed))


@pytest.mark.parametrize("name", FIELDS)
def test_a_removed_field_is_named(name: str) -> None:
    envelope = signed(build_receipt(receipt()))
    statement = json.loads(envelope.payload)
    del statement["predicate"][name]
    assert name in fields_named(check(replace(envelope, payload=json.dumps(statement).encode())))


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_shown_differently_is_named(name: str) -> None:
    envelope = signed(build_receipt(receipt()))
    view = predicate(envelope)
    assert check(envelope, view).receipt is not None
    assert fields_named(check(envelope, view | {name: other(view[name])})) == {name}
    assert fields_named(check(envelope, {key: value for key, value in view.items() if key != name})) == {name}


def test_a_field_shown_differently_is_named_also_where_its_mark_is_the_same() -> None:
    signed_gate, shown_gate = "step-15524.before", "step-34305.before"
    assert mark_of(signed_gate) == mark_of(shown_gate)
    envelope = signed(build_receipt(receipt(gate=signed_gate)))
    assert fields_named(check(envelope, predicate(envelope) | {"gate": shown_gate})) == {"gate"}


def test_false_shown_as_zero_is_a_change() -> None:
    envelope = signed(build_receipt(receipt()))
    assert fields_named(check(envelope, predicate(envelope) | {"allowSelf": 0})) == {"allowSelf"}


@pytest.mark.parametrize("name", ["_type", "subject", "predicateType"])
def test_a_change_around_the_fields_is_named(name: str) -> None:
    envelope = signed(build_receipt(receipt()))
    statement = json.loads(envelope.payload)
    statement[name] = "something"
    assert fields_named(check(replace(envelope, payload=json.dumps(statement).encode()))) == {name}


def test_a_field_changed_with_its_mark_still_fails() -> None:
    careful = build_receipt(receipt(actor="mallory"))
    forged = replace(signed(build_receipt(receipt())), payload=careful.payload)
    assert fields_named(check(forged)) == {SIGNATURE}


def test_another_key_signed_nothing_here() -> None:
    assert fields_named(check(signed(build_receipt(receipt())), key=PrivateKey.generate().public)) == {SIGNATURE}


def test_a_changed_signature_or_hint_is_named() -> None:
    envelope = signed(build_receipt(receipt()))
    one = envelope.signatures[0]
    broken = replace(one, sig=bytes([one.sig[0] ^ 1, *one.sig[1:]]))
    assert fields_named(check(replace(envelope, signatures=(broken,)))) == {SIGNATURE}
    hinted = replace(envelope, signatures=(Signature(digest("f"), one.sig),))
    assert fields_named(check(hinted)) == {"envelope.signatures.keyid"}
    typed = replace(envelope, payload_type="application/json")
    assert fields_named(check(typed)) == {"envelope.payloadType"}


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b'{"predicate": 1}', b'{"predicate": {"id": "\\ud800"}}'])
def test_what_is_no_receipt_is_not_believed(payload: bytes) -> None:
    assert check(sign(PAYLOAD_TYPE, payload, KEY)).receipt is None
    assert check(Envelope(PAYLOAD_TYPE, payload, (Signature("", b"x"),))).receipt is None


def chain(count: int = 4) -> list[CheckedReceipt]:
    found: list[CheckedReceipt] = []
    for number in range(1, count + 1):
        previous = found[-1].digest if found else None
        found.append(check(signed(build_receipt(receipt(id=f"rcp_{number}", sequence=number, previous=previous)))))
    return found


def test_a_chain_from_its_first_receipt_on_holds() -> None:
    assert check_chain(chain()) == ()
    assert check_chain(chain()[:2]) == ()


def test_a_receipt_taken_out_put_in_or_moved_is_found() -> None:
    whole = chain()
    assert [p.field for p in check_chain(whole[1:])] == ["sequence"]
    assert [p.field for p in check_chain([whole[0], *whole[2:]])] == ["sequence"]
    assert "sequence" in {p.field for p in check_chain([whole[1], whole[0]])}
    stranger = check(signed(build_receipt(receipt(sequence=2, previous=digest("9")))))
    assert [p.field for p in check_chain([whole[0], stranger])] == ["previous"]
    elsewhere = check(signed(build_receipt(receipt(run="run_2", sequence=2, previous=whole[0].digest))))
    assert [p.field for p in check_chain([whole[0], elsewhere])] == ["run"]


def test_receipts_are_read_alone_with_their_view_or_as_a_run() -> None:
    envelope = signed(build_receipt(receipt()))
    written = {
        "payloadType": envelope.payload_type,
        "payload": base64.b64encode(envelope.payload).decode(),
        "signatures": [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in envelope.signatures],
    }
    shown = {"receipt": predicate(envelope), "envelope": written, "unsigned": {"audit_seq": 3}}
    alone = find_receipts(written, file="r")
    assert alone.receipts == (PresentedReceipt(envelope=envelope),)
    assert not alone.is_chain
    assert read_receipts(json.dumps(shown).encode(), file="r").receipts == (
        PresentedReceipt(envelope=envelope, view=predicate(envelope), unsigned={"audit_seq": 3}),
    )
    several = find_receipts({"run_id": "run_1", "receipts": [shown]}, file="r")
    assert several.is_chain
    assert len(several.receipts) == 1


@pytest.mark.parametrize("value", [None, 3, [], {}, {"receipts": []}, {"receipts": [1]}, {"envelope": 1}])
def test_a_file_without_receipts_is_refused(value: object) -> None:
    with pytest.raises(Invalid):
        find_receipts(value, file="r")


def test_the_sandbox_of_a_gated_call_is_signed_and_other_receipts_stay_as_they_were() -> None:
    subject = {"sandbox": {"level": "kernel", "profile": digest("e")}}
    view = predicate(signed(build_receipt(receipt(subject=subject))))
    assert view["subject"] == subject
    assert "subject" not in predicate(signed(build_receipt(receipt())))
    changed: dict[str, JsonValue] = {**view, "subject": {"sandbox": {**subject["sandbox"], "level": "none"}}}
    assert fields_named(check(signed(build_receipt(receipt(subject=subject))), changed)) == {"subject"}


def test_the_code_of_a_gated_call_is_signed_and_other_receipts_stay_as_they_were() -> None:
    code = {"digest": digest("e"), "source": "bundle"}
    view = predicate(signed(build_receipt(receipt(code=code))))
    assert view["code"] == code
    assert check(signed(build_receipt(receipt(code=code)))).receipt is not None
    assert "code" not in predicate(signed(build_receipt(receipt())))
    changed: dict[str, JsonValue] = {**view, "code": {**code, "digest": digest("f")}}
    assert fields_named(check(signed(build_receipt(receipt(code=code))), changed)) == {"code"}
