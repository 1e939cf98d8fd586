"""A service that lies about what people decided: a receipt that its own key signed and that says something else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from kneo.digest import digest_of_json
from kneo.trust.answer import AnswerBinding, ReviewerKeys, answer_digest, build_answer
from kneo.trust.dsse import Envelope, TrustedKey, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import PresentedReceipt, Receipt, Voter, build_receipt, content_digest, marks_of, sign_receipt
from kneo.trust.receipt_check import CheckedReceipt, check_receipt
from kneo.trust.statement import PAYLOAD_TYPE

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SERVICE = PrivateKey.generate()
KEYS = {name: PrivateKey.generate() for name in ("ann", "ben")}
REVIEWERS = ReviewerKeys(keys={key.keyid: TrustedKey(key.public, name) for name, key in KEYS.items()})
TEN, MORE = "pay 10 EUR", "pay 9999 EUR"


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def statement(name: str, decision: str = "edited", content: str | None = TEN, *, at: datetime = NOW) -> Envelope:
    """What a person signed with a key of their own."""
    said: dict[str, object] = {
        "task": "cont_1", "request": "req_1", "run": "run_1", "environment": "prod", "gate": "release.before",
        "subject_digest": digest("a"), "decision": decision, "answer_digest": answer_digest(decision, content, (), None),
        "content_digest": content_digest({"content": content}), "reviewer": name, "bundle_digest": digest("b"),
        "policy_digest": digest("c"),
    }  # fmt: skip
    built = build_answer(AnswerBinding.model_validate(said), issued_at=at, expires=at + timedelta(minutes=15))
    return sign(PAYLOAD_TYPE, built.payload, KEYS[name])


def voter(name: str, decision: str = "edited", signed: Envelope | None = None, *, at: datetime = NOW) -> Voter:
    return Voter.model_validate(
        {
            "actor": name,
            "decision": decision,
            "at": at,
            "roles": ("approver",),
            "statement": signed.digest if signed else None,
        }
    )


STATEMENTS = (statement("ann"), statement("ben"))
GENUINE: dict[str, object] = {
    "id": "rcp_1", "task": "cont_1", "request": "req_1", "run": "run_1", "environment": "prod",
    "gate": "release.before", "position": "before", "step": "all/release", "attempt": 0,
    "subject_digest": digest("a"), "decision": "edited", "effect": None,
    "content_digest": content_digest({"content": TEN}), "by": "person", "actor": "ben",
    "decided_at": NOW + timedelta(minutes=1),
    "voters": (voter("ann", signed=STATEMENTS[0]), voter("ben", signed=STATEMENTS[1], at=NOW + timedelta(minutes=1))),
    "allow_self": False, "bundle_digest": digest("b"), "policy_digest": digest("c"), "source": None,
    "audit_event": "evt_1", "audit_leaf": "d" * 64, "audit_size": 7, "audit_head": "e" * 64,
    "sequence": 1, "previous": None,
}  # fmt: skip


def check(*, statements: tuple[Envelope, ...] | None = STATEMENTS, **changes: object) -> CheckedReceipt:
    """Look at a receipt that the service has signed with care: its marks are those of what it says."""
    receipt = Receipt.model_validate({**GENUINE, **changes})
    envelope = sign_receipt(build_receipt(receipt), SERVICE)
    return check_receipt(PresentedReceipt(envelope=envelope, statements=statements), [SERVICE.public], REVIEWERS)


def named(found: CheckedReceipt) -> list[str]:
    assert found.receipt is None
    return [problem.field for problem in found.problems]


def rejected(name: str, signed: Envelope | None) -> dict[str, object]:
    return {"decision": "rejected", "effect": "stop", "actor": name, "decided_at": NOW,
            "content_digest": None, "voters": (voter(name, "rejected", signed),)}  # fmt: skip


def test_what_people_decided_and_signed_holds() -> None:
    found = check()
    assert found.problems == ()
    assert found.signed_by == ("ann", "ben")


def test_a_rejection_that_one_signed_holds() -> None:
    signed = statement("ann", "rejected", None)
    assert check(statements=(signed,), **rejected("ann", signed)).signed_by == ("ann",)


def test_a_deadline_and_a_replay_hold() -> None:
    expired = {"by": "policy:timeout", "actor": "policy:timeout", "voters": (), "decision": "expired", "effect": "fail"}
    assert check(statements=(), **expired, content_digest=None).receipt is not None
    assert check(statements=(), by="replay", voters=(), source=digest("9")).receipt is not None
    assert check(statements=(), by="replay", voters=()).receipt is not None  # of a decision that had no receipt


def test_a_name_spelled_otherwise_is_the_same_person() -> None:
    assert check(actor="BEN").receipt is not None


def test_clocks_of_processes_may_differ_a_little() -> None:
    late = statement("ann", at=NOW + timedelta(minutes=4))
    voters = (voter("ann", signed=late),)
    assert check(statements=(late,), voters=voters, actor="ann", decided_at=NOW).receipt is not None


def test_a_rejection_given_out_as_an_approval_is_refused() -> None:
    signed = statement("ann", "rejected", None)
    forged = {**rejected("ann", signed), "decision": "approved", "effect": None}
    assert named(check(statements=(signed,), **forged)) == ["decision", "voters[0].decision"]
    both = {**forged, "voters": (voter("ann", "approved", signed),)}
    assert named(check(statements=(signed,), **both)) == ["voters[0].statement.decision"]


@pytest.mark.parametrize("actor", ["ann", "mallory", "Mallory "])
def test_somebody_who_did_not_vote_last_did_not_decide(actor: str) -> None:
    forged = check(actor=actor, content_digest=content_digest({"content": MORE}))
    assert set(named(forged)) == {"actor", "voters[1].statement.contentDigest"}


@pytest.mark.parametrize("actor", ["ben", "Ben", "BEN "])
@pytest.mark.parametrize("name", ["content_digest", "policy_digest"])
def test_other_content_or_rules_than_the_last_voter_signed_are_refused(actor: str, name: str) -> None:
    field = {"content_digest": "contentDigest", "policy_digest": "policyDigest"}[name]
    assert named(check(actor=actor, **{name: digest("9")})) == [f"voters[1].statement.{field}"]


def test_two_who_signed_different_answers_did_not_agree() -> None:
    other = statement("ann", content=MORE)
    voters = (voter("ann", signed=other), GENUINE["voters"][1])  # type: ignore[index]
    assert "voters.statement.answerDigest" in named(check(statements=(other, STATEMENTS[1]), voters=voters))


def test_a_last_voter_who_signed_nothing_proves_nothing_for_the_others() -> None:
    voters = (GENUINE["voters"][0], voter("mallory", at=NOW + timedelta(minutes=1)))  # type: ignore[index]
    forged = {"voters": voters, "actor": "mallory", "content_digest": content_digest({"content": MORE})}
    found = check(statements=STATEMENTS[:1], **forged)
    assert found.signed_by == ()


@pytest.mark.parametrize("minutes", [-365 * 24 * 60, -6, 15, 365 * 24 * 60])
def test_a_vote_outside_of_the_time_of_its_statement_is_refused(minutes: int) -> None:
    at = NOW + timedelta(minutes=minutes)
    voters = (voter("ann", signed=STATEMENTS[0], at=at), GENUINE["voters"][1])  # type: ignore[index]
    expected = "issuedAt" if minutes < 0 else "expires"
    assert named(check(voters=voters)) == [f"voters[0].statement.{expected}"]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"by": "policy:timeout"}, ["voters", "actor"]),
        ({"by": "policy:timeout", "actor": "policy:timeout"}, ["voters"]),
        ({"by": "policy:timeout", "actor": "policy:timeout", "decision": "expired", "effect": "fail"}, ["voters"]),
        ({"by": "replay", "source": digest("9")}, ["voters"]),
        ({"by": "replay", "voters": (), "actor": "policy:timeout"}, ["by"]),
        ({"voters": ()}, ["voters"]),
        ({"source": digest("9")}, ["source"]),
        ({"effect": "stop"}, ["effect"]),
        ({"decided_at": NOW}, ["decidedAt"]),
        ({"sequence": 2}, ["previous"]),
        ({"previous": digest("9")}, ["previous"]),
    ],
)
def test_fields_that_contradict_each_other_are_named(changes: dict[str, object], fields: list[str]) -> None:
    statements = () if changes.get("voters") == () else STATEMENTS
    assert named(check(statements=statements, **changes)) == fields


def test_one_person_named_twice_is_refused() -> None:
    voters = (*GENUINE["voters"], replaced("Ann"))  # type: ignore[misc]
    assert "voters" in named(check(voters=voters, actor="Ann"))


def replaced(name: str) -> Voter:
    return voter(name, signed=STATEMENTS[0], at=NOW + timedelta(minutes=1))


VOUCHED_BY_THE_SERVICE = {
    "id", "position", "step", "attempt", "allow_self", "audit_event", "audit_leaf", "audit_size", "audit_head",
}  # fmt: skip
"""What is the service's word alone, with whom the reviewers were and how their word came: the receipts of the run, its bundle and
the audit log speak about the rest of it."""

OTHERS: dict[str, object] = {
    "decision": "approved", "by": "replay", "actor": "mallory", "decided_at": NOW + timedelta(hours=9), "effect": "stop",
    "voters": (), "source": digest("9"), "sequence": 2, "previous": digest("9"), "environment": None,
    "bundle_digest": None, "policy_digest": None, "content_digest": None, "subject_digest": digest("9"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(GENUINE) - VOUCHED_BY_THE_SERVICE))
def test_any_field_that_a_service_changes_and_signs_is_found(name: str) -> None:
    changed = OTHERS.get(name, f"{GENUINE[name]}x")
    assert check(**{name: changed}).receipt is None


def paths(value: JsonValue, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value: fields, items, and what is in them."""
    inner: list[tuple[str | int, JsonValue]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [at, *(path for key, item in inner for path in paths(item, (*at, key)))] if at else [
        path for key, item in inner for path in paths(item, (key,))
    ]  # fmt: skip


def put(tree: Any, path: tuple[str | int, ...], value: JsonValue) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def at(tree: Any, path: tuple[str | int, ...]) -> JsonValue:
    for key in path:
        tree = tree[key]
    found: JsonValue = tree
    return found


ENVELOPE = sign_receipt(build_receipt(Receipt.model_validate(GENUINE)), SERVICE)
PAYLOADS = {"receipt": ENVELOPE.payload, "ann": STATEMENTS[0].payload, "ben": STATEMENTS[1].payload}
PLACES = [(which, path) for which, payload in PAYLOADS.items() for path in paths(json.loads(payload))]
VALUES = st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=8) | st.just([]) | st.just({})


@given(st.sampled_from(PLACES), VALUES)
def test_any_single_field_that_somebody_changes_is_found(
    place: tuple[str, tuple[str | int, ...]], value: JsonValue
) -> None:
    which, path = place
    tree = json.loads(PAYLOADS[which])
    if digest_of_json(at(tree, path)) == digest_of_json(value):
        return
    put(tree, path, value)
    payload = json.dumps(tree).encode()
    envelope = replace(ENVELOPE, payload=payload) if which == "receipt" else ENVELOPE
    statements = tuple(
        replace(one, payload=payload) if which == name else one
        for name, one in zip(("ann", "ben"), STATEMENTS, strict=True)
    )
    found = check_receipt(PresentedReceipt(envelope=envelope, statements=statements), [SERVICE.public], REVIEWERS)
    assert found.receipt is None
    assert found.problems


def test_marks_made_anew_by_somebody_without_the_key_help_nobody() -> None:
    tree = json.loads(ENVELOPE.payload)
    said = {name: value for name, value in tree["predicate"].items() if name != "marks"} | {"actor": "mallory"}
    tree["predicate"] = {**said, "marks": marks_of(said)}
    forged = replace(ENVELOPE, payload=json.dumps(tree).encode())
    assert check_receipt(PresentedReceipt(envelope=forged), [SERVICE.public]).receipt is None
