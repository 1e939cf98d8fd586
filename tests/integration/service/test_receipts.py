"""Receipts over HTTP, and on another machine that has nothing but the file and the public key."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, spec_of

from kneo.cli.main import run
from kneo.trust.keys import PrivateKey

Json = dict[str, object]
Verify = Callable[..., Json]

SECOND: Json = {"id": "again", "kind": "human", "ref": "editor"}


@pytest.fixture
def decided(bench: Bench) -> Json:
    """A receipt as the service hands it out."""
    paused = bench.paused()
    bench.answer(paused, comment="looks right")
    return bench.get(f"/human-tasks/{paused['continuation_id']}/receipt", role="reviewer")


@pytest.fixture
def verify(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Check a file on a machine that shares nothing with the service but its public key."""
    pem = tmp_path / "service.pem"
    pem.write_text(str(bench.get("/receipts/key")["key"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KNEO_SERV_DATABASE_URL", "KNEO_SERV_SERVICE_KEY"):
        monkeypatch.delenv(name, raising=False)

    def check(handed: object, *, expect: int, key: Path = pem) -> Json:
        (tmp_path / "receipt.json").write_text(json.dumps(handed))
        assert run(["human", "receipt", "verify", "receipt.json", "--key", str(key), "--json"]) == expect
        answer: Json = json.loads(capsys.readouterr().out)
        assert not (tmp_path / ".kneo").exists()
        return answer

    return check


def named(answer: Json) -> list[str]:
    problems = answer["problems"]
    assert isinstance(problems, list)
    return [problem["field"] for problem in problems]


def test_a_receipt_holds_elsewhere_with_the_public_key_alone(decided: Json, verify: Verify) -> None:
    assert verify(decided, expect=0)["valid"]
    assert verify(decided["envelope"], expect=0)["valid"]


def test_a_receipt_says_who_decided_what_about_what(bench: Bench, decided: Json) -> None:
    said = decided["receipt"]
    task = bench.get(f"/human-tasks/{said['task']}")
    assert (said["actor"], said["decision"], said["by"]) == ("reviewer", "approved", "person")
    assert (said["run"], said["gate"]) == (task["run_id"], task["key"])
    assert said["subjectDigest"] == task["request"]["subject_digest"]
    assert "looks right" not in json.dumps(decided)


def test_every_field_changed_in_turn_is_named(decided: Json, verify: Verify) -> None:
    for name, value in decided["receipt"].items():
        changed = {**decided, "receipt": {**decided["receipt"], name: [value, "changed"]}}
        assert named(verify(changed, expect=3)) == [name]


def test_every_signed_field_changed_in_turn_is_named(decided: Json, verify: Verify) -> None:
    envelope = decided["envelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    for name in [*statement["predicate"]]:
        if name == "marks":
            continue
        predicate = {**statement["predicate"], name: [statement["predicate"][name], "changed"]}
        payload = base64.b64encode(json.dumps({**statement, "predicate": predicate}).encode()).decode()
        assert name in named(verify({**envelope, "payload": payload}, expect=3))


def test_another_key_is_not_believed(decided: Json, verify: Verify, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(PrivateKey.generate().public.pem)
    assert named(verify(decided, expect=3, key=other)) == ["signature"]


def test_a_run_is_a_chain_from_which_nothing_can_be_taken(bench: Bench, verify: Verify) -> None:
    waiting = bench.start(spec_of(DRAFT, APPROVE, SECOND, PUBLISH))
    first = waiting["continuation_id"]
    again = bench.answer(waiting)
    while again["status"] == "paused":
        again = bench.answer(again | {"continuation_id": again["metadata"]["continuation_id"]})
    chain = bench.get(f"/runs/{waiting['run_id']}/receipts")
    assert chain["count"] == 2
    assert chain["receipts"][0]["receipt"]["task"] == first
    assert verify(chain, expect=0)["valid"]
    assert named(verify({**chain, "receipts": chain["receipts"][1:]}, expect=3)) == ["sequence"]
    assert "sequence" in named(verify({**chain, "receipts": chain["receipts"][::-1]}, expect=3))


def test_the_service_checks_receipts_too_and_knows_its_own(bench: Bench, decided: Json) -> None:
    answer = bench.post("/receipts/verify", decided)
    assert answer["valid"]
    assert answer["receipts"][0]["known"]
    forged = {**decided, "receipt": {**decided["receipt"], "actor": "mallory"}}
    assert named(bench.post("/receipts/verify", forged)) == ["actor"]
    stranger = bench.post("/receipts/verify", decided | {"key": PrivateKey.generate().public.pem})
    assert named(stranger) == ["signature"]
    assert bench.post("/receipts/verify", {}, expect=400)["error"] == "Malformed"
    bench.post("/receipts/verify", {"recepit": 1}, expect=422)


def test_what_is_not_decided_has_no_receipt(bench: Bench) -> None:
    paused = bench.paused()
    missing = bench.get(f"/human-tasks/{paused['continuation_id']}/receipt", expect=404)
    assert missing["error"] == "receipt_not_found"
    assert bench.get("/human-tasks/cont_none/receipt", expect=404)["error"] == "not_found"
    assert bench.get("/runs/run_none/receipts", expect=404)["error"] == "not_found"


def test_a_trace_shows_what_was_decided(bench: Bench, decided: Json) -> None:
    trace = bench.get(f"/trace/{decided['receipt']['run']}")
    assert [item["id"] for item in trace["receipts"]] == [decided["receipt"]["id"]]
