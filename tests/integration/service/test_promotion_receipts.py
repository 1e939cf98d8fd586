"""Receipts of promotions over HTTP, and on another machine that has nothing but the files and the public key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_house import RULES, House, released
from kneo_process import Desk
from service_bench import Json

from kneo.clock import isoformat, parse_time


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service over a config repository in which prod requires two approvals."""
    with pytest.MonkeyPatch.context() as patch, released(tmp_path_factory.mktemp("receipts")) as house:
        patch.setitem(RULES, "approvals", {"required": 2, "roles": ["approver"]})
        yield house


class Auditor:
    """A machine with the service's public key, the trust root and the environment file."""

    def __init__(self, folder: Path, house: House) -> None:
        self.desk = Desk(folder, f"sqlite:///{folder / 'none.sqlite'}", KNEO_SERV_TRUST_ROOT=house.repo.pin)
        (folder / "service.pem").write_text(str(house.bench.get("/receipts/key")["key"]))
        self.update(house)

    def update(self, house: House) -> None:
        """Fetch the files of the config repository."""
        shutil.copytree(house.repo.folder / "environments", self.desk.folder / "environments", dirs_exist_ok=True)

    def verify(self, receipt: object, *options: str, expect: int = 0) -> Json:
        (self.desk.folder / "receipt.json").write_text(json.dumps(receipt))
        options = options or ("--key", "service.pem")
        verdict = self.desk.json("promotion", "receipt", "verify", "receipt.json", *options, expect=expect)
        assert not (self.desk.folder / "none.sqlite").exists()
        assert verdict["valid"] is (expect == 0)
        return verdict

    def refused(self, receipt: object, *options: str) -> list[object]:
        return [problem["field"] for problem in self.verify(receipt, *options, expect=3)["problems"]]


@pytest.fixture
def auditor(house: House, tmp_path: Path) -> Auditor:
    return Auditor(tmp_path / "auditor", house)


def test_every_approver_of_a_promotion_leaves_a_receipt_that_holds_elsewhere(house: House, auditor: Auditor) -> None:
    change = house.release()
    first = house.bench.post(f"/promotions/{change['id']}/approve", {"reason": "Read it"}, role="approver")["approval"]
    pending = house.bench.get(f"/promotions/{change['id']}/receipts", role="viewer")
    assert [one["unsigned"]["id"] for one in pending["receipts"]] == [first["id"]]
    assert (pending["version"], pending["revision"], pending["count"]) == (change["version"], None, 1)
    house.bench.post(f"/promotions/{change['id']}/approve", role="admin")
    done = house.bench.get("/promotions", environment="prod", phase="done", limit=1)["promotions"][0]
    applied = house.bench.get(f"/promotions/{done['id']}/receipts", role="auditor")
    assert (applied["revision"], applied["count"]) == (f"main@sha1:{house.repo.head()}", 2)
    assert isinstance(applied["audit_seq"], int | None)

    auditor.update(house)
    verdict = auditor.verify(applied)
    said = [(one["approvers"], one["said"]["decision"], one["said"]["bundleDigest"]) for one in verdict["receipts"]]
    assert said == [([{"name": name, "signed": False}], "approve", change["digest"]) for name in ("approver", "admin")]
    single = house.bench.get(f"/approvals/{first['id']}/receipt", role="viewer")
    assert single == pending["receipts"][0]
    assert auditor.verify(single)["receipts"][0]["said"]["reason"] == "Read it"
    printed = auditor.desk.kneo("promotion", "receipt", "verify", "receipt.json", "--key", "service.pem")
    assert f"approver approved announcement {change['digest']} for prod on " in printed.stdout + printed.stderr
    assert auditor.refused(single, "--trust", "environments/trust.json") == ["signature"], "no key of the service"


def test_a_rejection_has_a_receipt_that_outlives_the_change(house: House, auditor: Auditor) -> None:
    change = house.release()
    body = {"reason": "Too long"}
    approval = house.bench.post(f"/promotions/{change['id']}/reject", body, role="approver")["approval"]
    auditor.update(house)
    rules = (house.repo.folder / "environments" / "prod.yaml").read_text()
    house.release()  # another version, under the same rules: the rejected change is gone
    house.bench.get(f"/promotions/{change['id']}/receipts", expect=404)
    receipt = house.bench.get(f"/approvals/{approval['id']}/receipt")
    (item,) = auditor.verify(receipt)["receipts"]
    assert (item["said"]["decision"], item["said"]["bundleDigest"]) == ("reject", change["digest"])
    (auditor.desk.folder / "prod-then.yaml").write_text(rules)
    house.repo.environment("prod", {"announcement": change["version"]}, **{**RULES, "soak": "1h"})
    auditor.update(house)
    house.repo.git("checkout", "-q", "--", ".")
    assert auditor.refused(receipt) == ["policyDigest"], "the rules changed since"
    auditor.verify(receipt, "--key", "service.pem", "--environment", "prod-then.yaml")


def test_a_changed_receipt_is_refused_with_the_changed_field(house: House, auditor: Auditor) -> None:
    change = house.release()
    approval = house.bench.post(f"/promotions/{change['id']}/reject", role="approver")["approval"]
    auditor.update(house)
    receipt = house.bench.get(f"/approvals/{approval['id']}/receipt")
    shown = {**receipt, "receipt": {**receipt["receipt"], "decision": "approve"}}
    assert auditor.refused(shown) == ["decision"]
    assert auditor.refused({**receipt, "unsigned": {**receipt["unsigned"], "principal": "admin"}}) == [
        "unsigned.principal"
    ]
    payload = str(receipt["envelope"]["payload"])
    middle = len(payload) // 2
    other = payload[:middle] + ("A" if payload[middle] != "A" else "B") + payload[middle + 1 :]
    assert auditor.refused({**receipt, "envelope": {**receipt["envelope"], "payload": other}})


def test_a_decision_with_an_own_key_is_verified_without_the_service(
    house: House, auditor: Auditor, tmp_path: Path
) -> None:
    change = house.release()
    desk = Desk(tmp_path / "desk", "sqlite:///none.sqlite", KNEO_SERV_API_KEY="approver-key")
    (desk.folder / "ann.pem").write_bytes(house.repo.key.dump())
    service = ("--service-url", house.bench.url)
    change_name = f"prod/announcement@{change['version']}"
    decided = desk.json("reject", change_name, "--key", "ann.pem", "--yes", *service)
    name = str(decided["approval"]["id"])  # type: ignore[index]
    shown = desk.kneo("promotion", "receipt", "show", name, "--output", "receipt.json", *service)
    assert "reject by ann" in shown.stdout
    auditor.update(house)
    receipt = json.loads((desk.folder / "receipt.json").read_text())
    (item,) = auditor.verify(receipt, "--trust", "environments/trust.json")["receipts"]
    assert item["approvers"] == [{"name": "ann", "signed": True}]
    early = isoformat(parse_time(str(receipt["unsigned"]["first_seen_at"])).replace(year=2025))
    assert auditor.refused(receipt, "--seen-at", early) == ["signature"], "signed after it was seen"


def test_receipts_need_the_scopes_of_releases_and_of_receipts(house: House) -> None:
    bench = house.bench
    change = house.release()
    approval = bench.post(f"/promotions/{change['id']}/reject", role="approver")["approval"]
    for path in (f"/approvals/{approval['id']}/receipt", f"/promotions/{change['id']}/receipts"):
        for role in ("viewer", "auditor", "operator", "approver"):
            bench.get(path, role=role)
        # A reviewer of human tasks reads no releases, and so no decisions about them.
        assert bench.get(path, role="reviewer", expect=403)["error"] == "forbidden"
    assert bench.get("/approvals/appr_none/receipt", expect=404)["error"] == "receipt_not_found"
    assert bench.get("/promotions/prom_none/receipts", expect=404)["error"] == "promotion_not_found"


def test_a_decision_by_the_id_of_a_change_is_about_no_bundle_with_that_name(tmp_path: Path) -> None:
    with released(tmp_path) as house:
        releases = {"announcement": "1.0.0"}

        def declare(name: str) -> dict[str, Json]:
            house.repo.release("dev", name, "1.0.0")
            releases[name] = "1.0.0"
            house.repo.environment("prod", releases, **RULES)
            house.repo.commit(f"Release {name}")
            house.bench.post("/environments/prod/reconcile", role="operator")
            waiting = house.bench.get("/promotions", environment="prod", phase="waiting")["promotions"]
            return {each["bundle"]: each for each in waiting}

        change = declare("zulu")["zulu"]
        stranger = declare(change["id"])[change["id"]]
        approval = house.bench.post(f"/promotions/{change['id']}/approve", role="approver")["approval"]
        assert approval["subject"] == change["digest"]
        assert stranger["digest"] != change["digest"]
