"""``kneo grant`` and the offline check of receipts of decisions by grants, on a local database."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from grant_house import GrantHouse
from integration.cli.conftest import Answer, Kneo

WHEN = "args.amount <= 100 && args.currency == 'EUR'"


@pytest.fixture
def create(kneo: Kneo) -> Callable[..., Answer]:
    def call(*more: object) -> Answer:
        words = ["--tool", "refund", "--when", WHEN, "--uses", 50, "--total", "amount=2000", "--expires", "14d"]
        return kneo("grant", "create", "prod/refunds", *words, "--reason", "none edited", "--yes", *more)

    return call


def test_two_people_grant_calls_and_one_revokes(house: GrantHouse, kneo: Kneo, create: Callable[..., Answer]) -> None:
    created = create("--key", "ann.pem")
    assert created.status == 0, created.err
    assert "(pending: tools.refund.before needs 1 more approval)" in created.out
    grant_id = created.out.split()[2]
    approved = kneo("grant", "approve", grant_id, "--key", "ben.pem", "--yes")
    assert "(active: covers tools.refund.before)" in approved.out
    run = house.refunds(20)
    shown = kneo("grant", "show", grant_id, "--json").json
    assert {name: shown[name] for name in ("when", "uses", "uses_left", "total", "total_left", "status", "voters")} == {
        "when": WHEN,
        "uses": 50,
        "uses_left": 49,
        "total": {"amount": 2000},
        "total_left": {"amount": 1980},
        "status": "active",
        "voters": ["ann", "ben"],
    }
    assert (shown["covers"], shown["lacks"], shown["reason"]) == (["tools.refund.before"], [], "none edited")
    assert run.id in kneo("grant", "show", grant_id, "--uses").out
    assert kneo("grant", "list", "--env", "prod", "--status", "active", "--json").json["count"] == 1
    revoked = kneo("grant", "revoke", grant_id, "--reason", "new fraud case", "--json").json
    assert (revoked["status"], revoked["reason"]) == ("ended", "revoked")
    again = kneo("grant", "revoke", grant_id)
    assert again.status == 5
    assert f"{grant_id} ended on " in again.err
    assert ": revoked." in again.err
    assert "No grants." in kneo("grant", "list", "--status", "active").out


def test_refusals_have_their_exit_status(house: GrantHouse, kneo: Kneo, create: Callable[..., Answer]) -> None:
    assert create().status == 1, "the rule needs signatures"
    assert kneo("grant", "show", "grt_0").status == 4
    exceeded = create("--uses", 200, "--key", "ann.pem")
    assert (exceeded.status, "uses 200 exceeds 100 of the rule grants[0] of prod." in exceeded.err) == (1, True)
    wrong = create("--when", "args.ammount < 1", "--key", "ann.pem")
    assert "refund has no argument ammount. Did you mean amount?" in wrong.err
    house.serve("1.1.0", grants=[])
    assert "prod has no rule under grants for refund." in create("--key", "ann.pem").err


@pytest.fixture
def proof(house: GrantHouse, kneo: Kneo, tmp_path: Path) -> list[object]:
    grant = house.active()
    run = house.refunds(20, 30)
    (tmp_path / "receipts.json").write_text(kneo("task", "receipt", "show", run.id, "--json").out)
    (tmp_path / "grant.json").write_text(kneo("grant", "show", grant.id, "--json").out)
    keys = [each for name in ("ann", "ben") for each in ("--reviewer-key", f"{name}={name}.pub")]
    return ["task", "receipt", "verify", "receipts.json", "--key", "service.pub", *keys, "--grant", "grant.json"]


def test_receipts_of_a_grant_are_verified_offline_with_its_terms(kneo: Kneo, proof: list[object]) -> None:
    found = kneo(*proof, "--json")
    assert found.status == 0, found.out
    assert [receipt["signed_by"] for receipt in found.json["receipts"]] == [["ann", "ben"]] * 2  # type: ignore[attr-defined]
    said = found.json["receipts"][1]["said"]  # type: ignore[index]
    assert (said["by"], said["grant"]["number"]) == ("grant", 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("uses", 51), ("when", "args.amount <= 1000"), ("expires_at", "2099-01-01T00:00:00.000000+00:00"), ("tool", "x")],
)
def test_changed_terms_fail_the_check_of_every_receipt(
    kneo: Kneo, proof: list[object], tmp_path: Path, field: str, value: object
) -> None:
    file = tmp_path / "grant.json"
    shown = json.loads(file.read_text())
    changed = copy.deepcopy(shown)
    changed[field] = value
    file.write_text(json.dumps(changed))
    refused = kneo(*proof)
    assert refused.status == 3
    assert field in refused.err
    names = {"uses": "uses", "when": "when", "expires_at": "expires", "tool": "tool"}
    changed["terms"][names[field]] = value
    file.write_text(json.dumps(changed))
    assert kneo(*proof).status == 3, "the digest of the terms"
    from kneo.trust.grant import GrantTerms, build_terms

    terms = GrantTerms.model_validate_json(json.dumps(changed["terms"]))
    changed["terms_digest"] = build_terms(terms).digest
    file.write_text(json.dumps(changed))
    refused = kneo(*proof)
    assert refused.status == 3
    assert "grant.termsDigest" in refused.out + refused.err


@pytest.mark.parametrize("field", ["number", "termsDigest", "id"])
def test_a_changed_reference_to_the_grant_is_named(kneo: Kneo, proof: list[object], tmp_path: Path, field: str) -> None:
    file = tmp_path / "receipts.json"
    receipts = json.loads(file.read_text())
    grant = receipts["receipts"][0]["receipt"]["grant"]
    grant[field] = 2 if field == "number" else "sha256:" + "0" * 64 if field == "termsDigest" else "grt_other"
    file.write_text(json.dumps(receipts))
    refused = kneo(*proof)
    assert refused.status == 3
    assert "grant" in refused.out + refused.err


def test_a_grant_of_other_terms_is_refused(kneo: Kneo, proof: list[object], house: GrantHouse, tmp_path: Path) -> None:
    other = house.active(uses=49)
    (tmp_path / "grant.json").write_text(kneo("grant", "show", other.id, "--json").out)
    refused = kneo(*proof)
    assert refused.status == 3
    assert "grant.id" in refused.out + refused.err
