"""Standing grants over HTTP, and their pages in the console."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from console_pages import Browser, signed_in
from grant_house import FINANCE, PEOPLE, GrantHouse, grant_house
from installation_key import SERVICE_KEY
from service_bench import Bench, serving

from kneo.clock import ManualClock
from kneo.records.grant import NotCovered
from kneo.service.console.task_words import NOT_COVERED
from kneo.store.migrate import open_store
from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import PAYLOAD_TYPE

BODY = {
    "bundle": "refunds",
    "tool": "refund",
    "when": "args.amount <= 100 && args.currency == 'EUR'",
    "uses": 50,
    "total": {"amount": 2000},
    "expires_in": "14d",
    "reason": "none edited",
}
KEYS = "ann:reviewer-key:reviewer;ben:ben-key:reviewer;eve:viewer-key:viewer;olga:operator-key:operator;ada:admin-key:admin"


@pytest.fixture
def house(
    migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> Iterator[GrantHouse]:
    store = open_store(migrated_url, clock, lambda: SERVICE_KEY)
    with grant_house(store, tmp_path, monkeypatch) as made:
        made.release()
        yield made
    store.close()


@pytest.fixture
def bench(house: GrantHouse, migrated_url: str, tmp_path: Path) -> Iterator[Bench]:
    variables = {"KNEO_SERV_SERVICE_KEY": SERVICE_KEY.dump().decode(), "KNEO_SERV_TRUST_ROOT": house.repo.pin}
    with serving(tmp_path / "lab", migrated_url, workers=0, **variables, KNEO_SERV_API_KEYS=KEYS) as made:
        yield made
    Browser.close_all()


def signed(house: GrantHouse, payload: str, name: str) -> dict[str, object]:
    envelope = sign(PAYLOAD_TYPE, base64.b64decode(payload), house.keys[name])
    found: dict[str, object] = json.loads(serialise(envelope))
    return found


def created(house: GrantHouse, bench: Bench, **changes: object) -> dict[str, object]:
    body = {**BODY, **changes}
    statement = bench.post("/environments/prod/grants/statement", body, role="reviewer")
    body["statement"] = signed(house, str(statement["payload"]), "ann")
    return bench.post("/environments/prod/grants", body, role="reviewer")


def test_a_grant_over_http_from_its_statement_to_its_end(house: GrantHouse, bench: Bench) -> None:
    refused = bench.post("/environments/prod/grants", BODY, role="reviewer", expect=403)
    assert refused["error"] == "signature_required"
    grant = created(house, bench, expires_in=14 * 86_400)
    assert {
        name: grant[name] for name in ("status", "voters", "covers", "lacks", "reason", "created_by", "uses_left")
    } == {
        "status": "pending",
        "voters": ["ann"],
        "covers": [],
        "lacks": ["tools.refund.before"],
        "reason": "none edited",
        "created_by": "ann",
        "uses_left": 50,
    }
    path = f"/grants/{grant['id']}"
    body = {"statement": signed(house, str(grant["payload"]), "ben")}
    active = bench.client("ben").post(path + "/approve", json=body).json()
    assert (active["status"], active["covers"], active["voters"]) == ("active", ["tools.refund.before"], ["ann", "ben"])
    run = house.refunds(20)
    assert bench.get(path + "/uses")["uses"] == [
        {
            "number": 1,
            "task_id": house.all_tasks(run)[0].id,
            "run_id": run.id,
            "amounts": {"amount": 20},
            "at": house.store.clock.now().isoformat(timespec="microseconds"),
        }
    ]
    assert bench.get("/grants", environment="prod", status="active")["count"] == 1
    bench.post(path + "/revoke", role="viewer", expect=403)
    revoked = bench.post(path + "/revoke", {"reason": "fraud"}, role="operator")
    assert (revoked["status"], revoked["reason"], revoked["ended_by"]) == ("ended", "revoked", "olga")
    assert bench.post(path + "/revoke", role="reviewer", expect=409)["error"] == "grant_ended"
    assert bench.get("/grants/grt_0", expect=404)["error"] == "grant_not_found"


def test_a_repetition_under_a_key_changes_nothing_again(house: GrantHouse, bench: Bench) -> None:
    statement = bench.post("/environments/prod/grants/statement", BODY, role="reviewer")
    body = {**BODY, "statement": signed(house, str(statement["payload"]), "ann")}
    first, second = (bench.post("/environments/prod/grants", body, role="reviewer", key="create-1") for _ in range(2))
    assert first["id"] == second["id"]
    assert bench.get("/grants", environment="prod")["count"] == 1
    path = f"/grants/{first['id']}"
    vote = {"statement": signed(house, str(first["payload"]), "ben")}
    headers = {"Idempotency-Key": "approve-1"}
    votes = [bench.client("ben").post(path + "/approve", json=vote, headers=headers).json() for _ in range(2)]
    assert votes[0] == votes[1]
    assert votes[0]["voters"] == ["ann", "ben"]
    ends = [bench.post(path + "/revoke", {"reason": "fraud"}, role="operator", key="revoke-1") for _ in range(2)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"uses": 200}, 422, "grant_exceeds_rule"),
        ({"when": "args.ammount > 1"}, 422, "condition_invalid"),
        ({"when": "args.amount >"}, 422, "condition_invalid"),
        ({"tool": "other"}, 403, "grant_not_allowed"),
        ({"bundle": "other"}, 404, "release_not_found"),
        ({"expires_in": "91d"}, 422, "validation_error"),
        ({"expires_in": 10**18}, 422, "validation_error"),
        ({"uses": 0}, 422, None),
        ({"uses": True}, 422, "validation_error"),
        ({"expires_in": True}, 422, "validation_error"),
        ({"total": {"amount": "400"}}, 422, "validation_error"),
    ],
)
def test_refusals_have_their_status(
    house: GrantHouse, bench: Bench, changes: dict[str, object], status: int, code: str | None
) -> None:
    refused = bench.post("/environments/prod/grants", {**BODY, **changes}, role="reviewer", expect=status)
    assert code is None or refused["error"] == code
    proposal = "/environments/prod/grants/proposal?bundle=refunds&tool=refund&since=999999999d"
    assert bench.ask("GET", proposal, role="reviewer").status_code == 422


def test_the_console_shows_grants_and_revokes_them(house: GrantHouse, bench: Bench) -> None:
    grant, covered, asked = house.active(), house.refunds(20), house.refunds(200)
    browser = signed_in(bench.url, "reviewer")
    assert "49 of 50 uses left" in browser.get("/console/grants").text
    page = browser.get(f"/console/grants/{grant.id}")
    assert "49 of 50 left" in page.text
    assert "many approvals, none edited" in page.text
    task = browser.get(f"/console/inbox/{house.all_tasks(covered)[0].id}")
    assert f"grant {grant.id} (1 of 50) of ann, ben" in " ".join(task.text.split())
    words = f"approved by grant {grant.id} (1 of 50) of ann, ben"
    run_page = browser.get(f"/console/runs/{covered.id}")
    assert words in " ".join(run_page.text.split())
    talk = browser.get(f"/console/runs/{covered.id}/conversation").text
    assert f"approved by grant {grant.id}" in talk
    assert "approved by ann" not in talk
    assert words.removeprefix("approved by ") in signed_in(bench.url, "admin").get(f"/console/trace/{covered.id}").text
    open_task = browser.get(f"/console/inbox/{house.open(asked)[0].id}")
    assert "not true for the call" in open_task.text
    assert "Draft a grant from this call" in open_task.text
    draft = browser.get("/console/grants/proposal?environment=prod&bundle=refunds&tool=refund")
    assert "a draft needs 20" in draft.text
    browser.post(f"/console/grants/{grant.id}/revoke", {"reason": "fraud"}, expect=303)
    assert "revoked" in browser.get(f"/console/grants/{grant.id}").text


NAMES = (
    *("id", "environment", "bundle", "digest", "tool", "when", "uses", "uses_left", "uses_per_day", "uses_per_run"),
    *("total", "total_left", "expires_at", "status", "reason", "voters", "covers", "lacks", "terms_digest"),
    *("created_by", "created_at", "ended_at", "ended_by"),
)


def test_audit_metrics_and_logs_have_counts_and_digests_of_grants(
    house: GrantHouse, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    grant = created(house, bench, reason="known-customers", total={"amount": 1997.0831})
    assert set(NAMES) <= set(grant)
    path = f"/grants/{grant['id']}"
    bench.client("ben").post(path + "/approve", json={"statement": signed(house, str(grant["payload"]), "ben")})
    house.refunds({"amount": 17.3100831, "currency": "EUR", "note": "to-iban-77"})
    metrics = bench.client("viewer").get(f"{bench.url}/metrics").text
    assert "kneo_grants_active 1.0" in metrics
    assert "kneo_grant_uses_total 1.0" in metrics
    bench.post(path + "/revoke", {"reason": "fraud-case-4"}, role="operator")
    events = bench.get("/audit-events", limit=1000)["events"]
    types = [event["event_type"] for event in events if str(event["event_type"]).startswith("grant.")]
    assert sorted(types) == ["grant.activated", "grant.created", "grant.ended", "grant.voted"]
    [decision] = [event for event in events if event["event_type"] == "human.decision"]
    assert (decision["metadata"]["by"], decision["metadata"]["number"]) == ("grant", 1)
    secrets = ("args.", "known-customers", "1997.08", "17.31008", "to-iban-77", "fraud-case-4")
    shown = json.dumps(events) + metrics + caplog.text
    assert [each for each in secrets if each in shown] == []


def test_people_of_the_rule_are_those_of_the_environment(house: GrantHouse, bench: Bench) -> None:
    assert set(PEOPLE) >= {"ann", "ben"}
    assert FINANCE["quorum"] == {"approvals": 2}
    statement = bench.post("/environments/prod/grants/statement", BODY, role="admin")
    body = {**BODY, "statement": signed(house, str(statement["payload"]), "ann")}
    assert bench.post("/environments/prod/grants", body, role="admin", expect=403)["error"] == "not_a_candidate"


def test_each_reason_why_a_grant_does_not_cover_a_call_has_its_words() -> None:
    assert set(NOT_COVERED) == set(get_args(NotCovered))
